"""Import what nbdist itself needs into the notebook's kernel, at the first use of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nbdist.errors import LaunchError
from nbdist.sessions.deferral import deferred_interrupts
from nbdist.shadows import file_that_hides, without_working_folder


@contextmanager
def own_imports() -> Iterator[None]:
    """Import within the block: nothing from the working folder, and no interrupt half way.

    Raises:
        LaunchError: A file there was imported before, in place of a module that is needed.
        KeyboardInterrupt: The user has interrupted; the imports are done.
    """
    try:
        with deferred_interrupts(), without_working_folder():
            yield
    except (ImportError, AttributeError) as exc:
        if file := file_that_hides(exc):
            raise LaunchError(
                f"{file} was imported in place of a module that nbdist needs: {exc}.\n"
                "Give that file another name and restart the kernel."
            ) from exc
        raise
