"""Identifiers: UUID version 7 (RFC 9562), which sort by the time they were made."""

import os
import threading
import time

_lock = threading.Lock()
_last_ms = 0
_counter = 0


def uuid7() -> bytes:
    """Makes the 16 bytes of a UUID version 7, greater than all made before in this process.

    The 12 bits after the milliseconds count up within one millisecond (RFC 9562, section 6.2, method 1), so
    that order holds also when the machine's clock steps back.

    Example:
        >>> uuid7() < uuid7()
        True
    """
    return uuid7s(1)[0]


def uuid7s(n: int) -> list[bytes]:
    """Makes n of them at once, in order, as `uuid7` called n times would.

    Example:
        >>> first, second = uuid7s(2)
        >>> first < second
        True
    """
    global _last_ms, _counter
    if n < 1:
        return []
    with _lock:
        now = time.time_ns() // 1_000_000
        if now > _last_ms:
            _last_ms, _counter = now, -1
        ms, counter = _last_ms, _counter + 1
        # Where the counter is full, the next millisecond begins early.
        _last_ms, _counter = ms + (counter + n - 1) // 4096, (counter + n - 1) % 4096
    random = os.urandom(8 * n)
    out = []
    for i in range(n):
        place = counter + i
        head = ((ms + (place >> 12)) << 16) | 0x7000 | (place & 0xFFF)
        tail = (int.from_bytes(random[8 * i : 8 * i + 8], "big") & 0x3FFF_FFFF_FFFF_FFFF) | (0b10 << 62)
        out.append(((head << 64) | tail).to_bytes(16, "big"))
    return out


def text(identifier: bytes) -> str:
    """Writes 16 bytes in the usual form with dashes.

    Example:
        >>> text(bytes(16))
        '00000000-0000-0000-0000-000000000000'
    """
    digits = identifier.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
