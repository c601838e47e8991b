"""Fingerprints of texts: 128 bits of SipHash-2-4, the same in every process and on every machine.

Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012), with the 128-bit output of the reference
implementation; the key is zero. Two different texts share a fingerprint with probability 2^-128.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numba import njit, uint64

from vitok.errors import InvalidInput

if TYPE_CHECKING:
    import polars as pl


def fingerprint_texts(texts: "Sequence[str] | pl.Series") -> np.ndarray:
    """Returns the fingerprints of some texts.

    Args:
        texts: Texts, none of them null.

    Returns:
        Shape (n, 2), uint64.

    Raises:
        InvalidInput: If a text cannot be written as UTF-8.

    Example:
        >>> fingerprint_texts(["a", "b"]).shape
        (2, 2)
    """
    import polars as pl

    if not isinstance(texts, pl.Series) and len(texts) < 64:
        try:
            encoded = [text.encode() for text in texts]
        except UnicodeEncodeError as error:
            raise InvalidInput("text", error.object, "be Unicode without lone surrogates") from None
        offsets = np.array([0, *itertools.accumulate(map(len, encoded))], np.int64)
        data = np.frombuffer(b"".join(encoded) or b"\0", np.uint8)
    else:
        series = texts if isinstance(texts, pl.Series) else _series(texts)
        array = series.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
        _, where, content = array.buffers()
        offsets = np.frombuffer(where, np.int64, len(array) + 1, array.offset * 8)
        data = np.frombuffer(content, np.uint8) if content is not None and content.size else np.zeros(1, np.uint8)
    out = np.empty((len(offsets) - 1, 2), np.uint64)
    _hash_all(offsets, data, out)
    return out


def _series(texts: Sequence[str]) -> "pl.Series":
    import polars as pl

    try:
        return pl.Series(texts, dtype=pl.String)
    except UnicodeEncodeError as error:
        raise InvalidInput("text", error.object, "be Unicode without lone surrogates") from None


@njit(cache=True, inline="always")
def _rotate(value: int, by: int) -> int:
    return (value << uint64(by)) | (value >> uint64(64 - by))


@njit(cache=True)
def _rounds(v0: int, v1: int, v2: int, v3: int, n: int) -> tuple[int, int, int, int]:
    for _ in range(n):
        v0 = v0 + v1
        v1 = _rotate(v1, 13) ^ v0
        v0 = _rotate(v0, 32)
        v2 = v2 + v3
        v3 = _rotate(v3, 16) ^ v2
        v0 = v0 + v3
        v3 = _rotate(v3, 21) ^ v0
        v2 = v2 + v1
        v1 = _rotate(v1, 17) ^ v2
        v2 = _rotate(v2, 32)
    return v0, v1, v2, v3


@njit(cache=True)
def _hash_all(offsets: np.ndarray, data: np.ndarray, out: np.ndarray) -> None:
    for i in range(offsets.shape[0] - 1):
        begin, end = offsets[i], offsets[i + 1]
        length = end - begin
        v0 = uint64(0x736F6D6570736575)
        v1 = uint64(0x646F72616E646F6D) ^ uint64(0xEE)
        v2 = uint64(0x6C7967656E657261)
        v3 = uint64(0x7465646279746573)
        at = begin
        while end - at >= 8:
            word = uint64(0)
            for j in range(8):
                word |= uint64(data[at + j]) << uint64(8 * j)
            v3 ^= word
            v0, v1, v2, v3 = _rounds(v0, v1, v2, v3, 2)
            v0 ^= word
            at += 8
        word = uint64(length & 255) << uint64(56)
        for j in range(end - at):
            word |= uint64(data[at + j]) << uint64(8 * j)
        v3 ^= word
        v0, v1, v2, v3 = _rounds(v0, v1, v2, v3, 2)
        v0 ^= word
        v2 ^= uint64(0xEE)
        v0, v1, v2, v3 = _rounds(v0, v1, v2, v3, 4)
        out[i, 0] = v0 ^ v1 ^ v2 ^ v3
        v1 ^= uint64(0xDD)
        v0, v1, v2, v3 = _rounds(v0, v1, v2, v3, 4)
        out[i, 1] = v0 ^ v1 ^ v2 ^ v3
