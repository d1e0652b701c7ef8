"""Run the tutorials and keep their outputs in the files, as `make test-notebooks` compares them.

make notebooks
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TIMEOUT_S = 120
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def renew(path: Path) -> None:
    """Run the notebook *path* in its folder and write it with its outputs, nothing else of the run.

    Raises:
        CellExecutionError: A cell without the tag ``raises-exception`` failed; nothing is written.
    """
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(
        notebook,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        timeout=TIMEOUT_S,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    nbformat.validate(notebook)
    nbformat.write(notebook, path)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    os.environ["NBDIST_LIVE"] = "off"
    for name in sys.argv[1:]:
        renew(Path(name).absolute())
