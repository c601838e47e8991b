"""Identifiers: UUID version 7 (RFC 9562), which sort by the time they were made."""

import os
import threading
import time
import uuid

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
    global _last_ms, _counter
    with _lock:
        now = time.time_ns() // 1_000_000
        if now > _last_ms:
            _last_ms, _counter = now, 0
        else:
            _counter += 1
            if _counter > 0xFFF:
                _last_ms, _counter = _last_ms + 1, 0
        ms, counter = _last_ms, _counter
    random = int.from_bytes(os.urandom(8), "big") & ((1 << 62) - 1)
    return ((ms << 80) | (0x7 << 76) | (counter << 64) | (0b10 << 62) | random).to_bytes(16, "big")


def text(identifier: bytes) -> str:
    """Writes 16 bytes in the usual form with dashes.

    Example:
        >>> text(bytes(16))
        '00000000-0000-0000-0000-000000000000'
    """
    return str(uuid.UUID(bytes=identifier))
