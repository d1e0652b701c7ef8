"""Sleep on a word of memory that several processes share: Linux's futex, called as it is.

No CPU time, and a few microseconds from the wake-up to here. A sleep may end too early, and has an
end: who sleeps looks again.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time

SLICE_S = 0.05  # a signal that came just before the system call is seen after this


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_FUTEX_CALL = {"x86_64": 202, "aarch64": 98, "ppc64le": 221, "riscv64": 98, "s390x": 238}
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
_EVERYBODY = 2**31 - 1


class Futex:
    """A 32-bit word in shared memory on which processes can sleep.

    Where the system call is not there, a wait is a short sleep: it wakes late, never wrongly.
    """

    def __init__(self, chunk: mmap.mmap, offset: int) -> None:
        self._word = ctypes.c_uint32.from_buffer(chunk, offset)
        self._address = ctypes.c_void_p(ctypes.addressof(self._word))
        self._number = _FUTEX_CALL.get(platform.machine())
        self._libc = ctypes.CDLL(None, use_errno=True)  # releases the GIL while it waits

    @property
    def value(self) -> int:
        """What it says now."""
        return self._word.value

    @value.setter
    def value(self, value: int) -> None:
        self._word.value = value

    def wait(self, expected: int, timeout_s: float) -> None:
        """Sleep while the word is *expected*, at most `SLICE_S`."""
        seconds = min(timeout_s, SLICE_S)
        if self._number is None:
            time.sleep(min(seconds, 0.001))
            return
        spec = _TimeSpec(int(seconds), int(seconds % 1 * 1e9))
        self._libc.syscall(
            ctypes.c_long(self._number),
            self._address,
            ctypes.c_int(_FUTEX_WAIT),
            ctypes.c_uint32(expected),
            ctypes.byref(spec),
            None,
            0,
        )

    def wake(self, value: int) -> None:
        """Change the word to *value* and wake everybody."""
        self._word.value = value
        if self._number is not None:
            self._libc.syscall(
                ctypes.c_long(self._number),
                self._address,
                ctypes.c_int(_FUTEX_WAKE),
                ctypes.c_int(_EVERYBODY),
                None,
                None,
                0,
            )
