"""Namespaces of their own, for tests that mount something or rename the host: root only."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def can_unshare() -> bool:
    program = shutil.which("unshare")
    if program is None or os.getuid() != 0:
        return False
    return subprocess.run([program, "-m", "-u", "true"], capture_output=True).returncode == 0


needs_unshare = pytest.mark.skipif(not can_unshare(), reason="needs root and unshare")
