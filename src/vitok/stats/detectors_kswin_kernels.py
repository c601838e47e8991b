"""Compiled Kolmogorov-Smirnov windowing. Import inside the function that needs it.

River draws from Python's `random.Random(seed)`: the Mersenne twister and the rejections of `Random.sample` are written
out here, from the state that Python itself made of the seed, so that the same observations are drawn. The test has two
samples of the same size, so its p-value depends on a whole number: the largest gap of the two counts. Its critical
value is a parameter, and the window is kept sorted, so that a step is one walk over it.
"""

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from vitok.stats.detectors_kernels import CHANGE, DOWN, FIRED, REFUSED, UP, view

(
    HELD,
    OLDEST,
    TURN,
    SIZE,
    RECENT,
    CRITICAL,
    POOLED,
    KEEPS,
) = range(1, 9)
TWISTER, SEEDED = 9, 9 + 624
WINDOW = SEEDED + 624

_WORDS = 624

_Floats = NDArray[np.float64]
_Words = NDArray[np.uint64]
_Codes = NDArray[np.uint8]


def size(window_size: int) -> int:
    """Returns the places of a state: the window, its order, and what each place was drawn for."""
    return WINDOW + 3 * window_size


@njit(inline="always")
def _word(s: _Floats, w: _Words) -> int:
    turn = int(s[TURN])
    if turn >= _WORDS:
        for i in range(_WORDS):
            mixed = (w[TWISTER + i] & uint64(0x80000000)) | (w[TWISTER + (i + 1) % _WORDS] & uint64(0x7FFFFFFF))
            odd = uint64(0x9908B0DF) if mixed & uint64(1) else uint64(0)
            w[TWISTER + i] = w[TWISTER + (i + 397) % _WORDS] ^ (mixed >> uint64(1)) ^ odd
        turn = 0
    y = w[TWISTER + turn]
    s[TURN] = turn + 1
    y ^= y >> uint64(11)
    y ^= (y << uint64(7)) & uint64(0x9D2C5680)
    y ^= (y << uint64(15)) & uint64(0xEFC60000)
    y ^= y >> uint64(18)
    return y


@njit(inline="always")
def _below(s: _Floats, w: _Words, n: int) -> int:
    bits = 0
    while n >> bits:
        bits += 1
    shift = uint64(32 - bits)
    drawn = int(_word(s, w) >> shift)
    while drawn >= n:
        drawn = int(_word(s, w) >> shift)
    return drawn


@njit(inline="always")
def _draw(s: _Floats, w: _Words, pool: int, older: int, recent: int) -> None:
    # Afterwards the third stretch holds 1 where an older place was drawn. Which of two ways Python takes depends on
    # the sizes, and they use the random words differently.
    if s[POOLED] != 0.0:
        for i in range(older):
            w[pool + i] = uint64(i)
        for i in range(recent):
            j = _below(s, w, older - i)
            last = older - i - 1
            w[pool + j], w[pool + last] = w[pool + last], w[pool + j]
        # What was drawn lies at the end; marks go over the pool, so they need their own bit.
        for i in range(older - recent, older):
            w[pool + int(w[pool + i] & uint64(0xFFFFFFFF))] |= uint64(1) << uint64(32)
        for i in range(older):
            w[pool + i] >>= uint64(32)
        return
    for i in range(older):
        w[pool + i] = uint64(0)
    for _ in range(recent):
        j = _below(s, w, older)
        while w[pool + j]:
            j = _below(s, w, older)
        w[pool + j] = uint64(1)


@njit(inline="always")
def _place(s: _Floats, w: _Words, order: int, held: int, x: float) -> int:
    low, left = 0, held
    while left > 0:
        half = left >> 1
        if s[WINDOW + int(w[order + low + half])] < x:
            low += half + 1
            left -= half + 1
        else:
            left = half
    return low


@njit(inline="always")
def _push(s: _Floats, w: _Words, x: float) -> None:
    window = int(s[SIZE])
    order = WINDOW + window
    held, slot = int(s[HELD]), 0
    if held == window:
        slot = int(s[OLDEST])
        at = _place(s, w, order, held, s[WINDOW + slot])
        while w[order + at] != uint64(slot):
            at += 1
        for i in range(at, held - 1):
            w[order + i] = w[order + i + 1]
        held -= 1
        s[OLDEST] = (slot + 1) % window
    else:
        slot = (int(s[OLDEST]) + held) % window
    at = _place(s, w, order, held, x)
    for i in range(held, at, -1):
        w[order + i] = w[order + i - 1]
    w[order + at] = uint64(slot)
    s[WINDOW + slot] = x
    s[HELD] = held + 1


@njit(inline="always")
def _keep_recent(s: _Floats, w: _Words) -> None:
    window, recent = int(s[SIZE]), int(s[RECENT])
    order, oldest = WINDOW + window, int(s[OLDEST])
    at = 0
    for i in range(window):
        if (int(w[order + i]) + window - oldest) % window >= window - recent:
            w[order + at] = w[order + i]
            at += 1
    s[OLDEST] = (oldest + window - recent) % window
    s[HELD] = recent


@njit(inline="always")
def kswin_step(s: _Floats, w: _Words, x: float) -> int:
    """Kolmogorov-Smirnov windowing; `w` are the words of the same state."""
    if not abs(x) < np.inf:
        return REFUSED  # 16
    if s[FIRED] != 0.0:
        s[FIRED] = 0.0
        if s[KEEPS] == 0.0:
            s[HELD] = 0.0
            s[OLDEST] = 0.0
            s[TURN] = _WORDS
            for i in range(_WORDS):
                w[TWISTER + i] = w[SEEDED + i]
        else:
            _keep_recent(s, w)
    _push(s, w, x)
    window = int(s[SIZE])
    if s[HELD] < window:
        return 0
    recent, oldest = int(s[RECENT]), int(s[OLDEST])
    order, pool = WINDOW + window, WINDOW + 2 * window
    older = window - recent
    _draw(s, w, pool, older, recent)
    gap, above, below = 0, 0, 0
    for i in range(window):
        slot = int(w[order + i])
        age = slot - oldest if slot >= oldest else slot + window - oldest
        gap += -1 if age >= older else int(w[pool + age])
        if i + 1 == window or s[WINDOW + int(w[order + i + 1])] != s[WINDOW + slot]:
            above = max(above, gap)
            below = max(below, -gap)
    if max(above, below) < s[CRITICAL]:
        return 0
    s[FIRED] = 1.0
    if above == below:
        return CHANGE
    # More of the older ones lie below some value, so the recent ones are larger.
    return CHANGE | (UP if above > below else DOWN)


@njit(cache=True)
def kswin_one(address: float, x: float) -> int:
    """One observation."""
    s = view(address)
    return kswin_step(s, s.view(np.uint64), x)


@njit(cache=True, nogil=True)
def kswin_many(address: float, xs: _Floats, codes: _Codes) -> None:
    """A batch."""
    s = view(address)
    w = s.view(np.uint64)
    for i in range(len(xs)):
        codes[i] = kswin_step(s, w, xs[i])
