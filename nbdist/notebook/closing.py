"""End the ranks when the front end shuts the kernel down or restarts it, whatever the kernel does.

An idle kernel ends as a process does, and the session with it (`nbdist.sessions.current`). A busy
one first gets the request, which ipykernel's control thread takes; 2.5 s later SIGTERM, 5 s later
SIGKILL. In a long call of C the main thread sees neither in time, and the ranks would wait for
another kernel: so the request itself ends them. Read in ipykernel 7.4.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from nbdist.sessions import current


def end_ranks_on_shutdown(shell: Any) -> None:
    """Have the kernel of *shell* end the ranks first when it is told to shut down.

    Where the shell has no kernel this does nothing; twice does nothing more.
    """
    do_shutdown = getattr(getattr(shell, "kernel", None), "do_shutdown", None)
    if do_shutdown is None or hasattr(do_shutdown, "__wrapped__"):
        return

    @functools.wraps(do_shutdown)
    async def end_ranks_first(restart: bool) -> Any:
        current.stop_soon()
        answer = do_shutdown(restart)
        return await answer if inspect.isawaitable(answer) else answer

    shell.kernel.do_shutdown = end_ranks_first
