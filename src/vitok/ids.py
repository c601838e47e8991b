"""Identifiers: UUID version 7 (RFC 9562), which sort by the time they were made."""

import os
import struct
import threading
import time
from collections.abc import Sequence

_lock = threading.Lock()
_last_ms = 0
_counter = 0
_RANDOM, _VARIANT = 0x3FFF_FFFF_FFFF_FFFF, 0b10 << 62


class Made(list[bytes]):
    """Ids that were made together; their texts are written once, when they are first asked for. Not to be changed.

    Args:
        data: Their bytes, one after another.

    Attributes:
        data: The same.

    Example:
        >>> made = uuid7s(2)
        >>> made.texts == [text(made[0]), text(made[1])]
        True
    """

    __slots__ = ("_texts", "data")

    def __init__(self, data: bytes = b"") -> None:
        super().__init__([data[at : at + 16] for at in range(0, len(data), 16)])
        self.data = data

    @property
    def texts(self) -> list[str]:
        """The texts, in the same order."""
        try:
            return self._texts
        except AttributeError:
            self._texts: list[str] = [text(identifier) for identifier in self]
            return self._texts


def uuid7() -> bytes:
    """Makes the 16 bytes of a UUID version 7, greater than all made before in this process.

    The 12 bits after the milliseconds count up within one millisecond (RFC 9562, section 6.2, method 1), so
    that order holds also when the machine's clock steps back.

    Example:
        >>> uuid7() < uuid7()
        True
    """
    return uuid7s(1)[0]


def uuid7s(n: int) -> Made:
    """Makes n of them at once, in order, as `uuid7` called n times would.

    Example:
        >>> first, second = uuid7s(2)
        >>> first < second
        True
    """
    global _last_ms, _counter
    if n < 1:
        return Made()
    with _lock:
        now = time.time_ns() // 1_000_000
        if now > _last_ms:
            _last_ms, _counter = now, -1
        ms, counter = _last_ms, _counter + 1
        # Where the counter is full, the next millisecond begins early.
        _last_ms, _counter = ms + (counter + n - 1) // 4096, (counter + n - 1) % 4096
    if n == 1:
        word = ((ms + (counter >> 12)) << 16) | 0x7000 | (counter & 0xFFF)
        return Made((word << 64 | int.from_bytes(os.urandom(8)) & _RANDOM | _VARIANT).to_bytes(16))
    words = [0] * (2 * n)
    head = (ms << 16) | 0x7000
    if counter + n <= 4096:
        words[0::2] = range(head + counter, head + counter + n)
    else:
        words[0::2] = [head + ((place >> 12) << 16) + (place & 0xFFF) for place in range(counter, counter + n)]
    words[1::2] = [(word & _RANDOM) | _VARIANT for word in struct.unpack(f"{n}Q", os.urandom(8 * n))]
    return Made(struct.pack(f">{2 * n}Q", *words))


def text(identifier: bytes) -> str:
    """Writes 16 bytes in the usual form with dashes.

    Example:
        >>> text(bytes(16))
        '00000000-0000-0000-0000-000000000000'
    """
    # Pairs of bytes with dashes between them; three of the dashes are too many.
    pairs = identifier.hex("-", 2)
    return f"{pairs[:4]}{pairs[5:29]}{pairs[30:34]}{pairs[35:]}"


def texts(identifiers: Sequence[bytes]) -> list[str]:
    """Writes several of them, those that were made together only once.

    Example:
        >>> texts([bytes(16)])
        ['00000000-0000-0000-0000-000000000000']
    """
    return identifiers.texts if type(identifiers) is Made else [text(one) for one in identifiers]
