"""``python -m nbdist`` is the ``nbdist`` command."""

import sys

if not sys.flags.safe_path:  # `python -m` has put the working folder there, whatever lies in it
    del sys.path[0]

from nbdist.cli import main

if __name__ == "__main__":
    sys.exit(main())
