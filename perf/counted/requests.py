"""Talking to Callgrind from plain Python: valgrind's client requests without a compiler.

Valgrind recognises a sequence of instructions that does nothing elsewhere. Here it is put into a
page of executable memory. x86-64 only.
"""

import ctypes
import mmap

CODE = bytes.fromhex(
    "4889f8"  # mov rax, rdi: the request and its arguments
    "4889f2"  # mov rdx, rsi: the answer where valgrind isn't there
    "48c1c703 48c1c70d 48c1c73d 48c1c733"  # rol rdi by 3, 13, 61, 51: a full turn, twice
    "4887db"  # xchg rbx, rbx
    "4889d0 c3"  # return rdx
)
RUNNING_ON_VALGRIND = 0x1001
CALLGRIND = (ord("C") << 24) | (ord("T") << 16)
ZERO, DUMP_AT, START, STOP = CALLGRIND + 1, CALLGRIND + 3, CALLGRIND + 4, CALLGRIND + 5


class Callgrind:
    """The counter of this process, if it runs under valgrind."""

    def __init__(self) -> None:
        # The function lives in this page, so the page lives as long as the object.
        self._page = mmap.mmap(
            -1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        )
        self._page.write(CODE)
        self._hold = ctypes.c_char.from_buffer(self._page)
        kind = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64)
        self._request = kind(ctypes.addressof(self._hold))

    def ask(self, request: int, argument: int = 0) -> int:
        """Make one request; 0 where there is no valgrind."""
        words = (ctypes.c_uint64 * 6)(request, argument)
        return int(self._request(ctypes.addressof(words), 0))

    def is_there(self) -> bool:
        """Whether somebody counts."""
        return self.ask(RUNNING_ON_VALGRIND) > 0

    def dump(self, name: str) -> None:
        """Write what was counted since the last reset to a file that carries the name."""
        text = ctypes.create_string_buffer(name.encode())
        self.ask(DUMP_AT, ctypes.addressof(text))
