"""Compiled fingerprints of texts that lie one after another. Import inside the function that needs it.

To make an Arrow column of Python's texts costs as much as to hash them. One join is a fraction of that, and the zero
bytes between them say where each ends. The fingerprint is the first half of that of `vitok.features.fingerprints`,
from where the rounds come.
"""

import numpy as np
from numba import njit, uint64

from vitok.features.fingerprints import _rounds

END = "\0" * 8
"""What comes after the last text and its zero byte, so that eight bytes can be read anywhere."""

_1, _8, _0 = np.uint64(1), np.uint64(8), np.uint64(0)
_LOW, _HIGH = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)


@njit(inline="always")
def _word(data: np.ndarray, at: int) -> int:
    # Written out, it is one read of eight bytes.
    return (
        uint64(data[at])
        | uint64(data[at + _1]) << uint64(8)
        | uint64(data[at + uint64(2)]) << uint64(16)
        | uint64(data[at + uint64(3)]) << uint64(24)
        | uint64(data[at + uint64(4)]) << uint64(32)
        | uint64(data[at + uint64(5)]) << uint64(40)
        | uint64(data[at + uint64(6)]) << uint64(48)
        | uint64(data[at + uint64(7)]) << uint64(56)
    )


@njit(cache=True)
def fingerprint_joined(data: np.ndarray, out: np.ndarray) -> bool:
    """Writes the fingerprint of each text.

    Args:
        data: UTF-8 of the texts, each with a zero byte after it, and then `END`; uint8.
        out: One place a text, uint64; 0 for an empty text.

    Returns:
        Whether there are as many texts as places: not where a text holds a zero byte.
    """
    at, end = _0, uint64(data.shape[0]) - _8
    for i in range(out.shape[0]):
        if at >= end:
            return False
        begin = at
        v0 = uint64(0x736F6D6570736575)
        v1 = uint64(0x646F72616E646F6D) ^ uint64(0xEE)
        v2 = uint64(0x6C7967656E657261)
        v3 = uint64(0x7465646279746573)
        word = _word(data, at)
        # The highest bit of each byte that is zero; those above the first one may be wrong, and are not asked.
        zeros = (word - _LOW) & ~word & _HIGH
        while zeros == _0:
            v3 ^= word
            v0, v1, v2, v3 = _rounds(v0, v1, v2, v3, 2)
            v0 ^= word
            at += _8
            word = _word(data, at)
            zeros = (word - _LOW) & ~word & _HIGH
        # All bits below the first byte that is zero, and how many bytes that is.
        below = ((zeros & (~zeros + _1)) >> uint64(7)) - _1
        at += ((below & _LOW) * _LOW) >> uint64(56)
        length = at - begin
        word = (word & below) | ((length & uint64(255)) << uint64(56))
        at += _1
        v3 ^= word
        v0, v1, v2, v3 = _rounds(v0, v1, v2, v3, 2)
        v0 ^= word
        v2 ^= uint64(0xEE)
        v0, v1, v2, v3 = _rounds(v0, v1, v2, v3, 4)
        out[i] = v0 ^ v1 ^ v2 ^ v3 if length > _0 else _0
    return at == end
