"""Compiled betting on conformal p-values. Import inside the function that needs it.

A state is one array of 8-byte places, read as numbers, and as words where the random generator is kept.
"""

import math

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from vitok.stats.detectors_kernels import CHANGE, DOWN, FIRED, REFUSED, UP, view

RANDOM, SEED, N, CAPITAL, BOUND, RESTARTS, LEARNS, BINS, EDGES, TOTAL, N_REFERENCE, NULLS = range(1, 13)
WEIGHTS = 13
BETTORS = 10
CELLS = 10
SEEN = WEIGHTS + BETTORS
HEAD = SEEN + CELLS
"""Then come the reference's counts, the counts so far, and the edges."""

CATEGORIES = -1.0

_SHARE = 0.005
_KEEP = 0.99
_PRIOR = 2.0

_Floats = NDArray[np.float64]
_Words = NDArray[np.uint64]
_Codes = NDArray[np.uint8]


@njit(cache=True)
def drift_clear(s: _Floats) -> None:
    """Begins anew with the reference alone; the random numbers go on."""
    s[FIRED] = 0.0
    s[N] = 0.0
    s[NULLS] = 0.0
    s[CAPITAL] = 0.0 if s[RESTARTS] != 0.0 else 1.0
    s[TOTAL] = s[N_REFERENCE]
    bins = int(s[BINS])
    for i in range(bins):
        s[HEAD + bins + i] = s[HEAD + i]
    for i in range(BETTORS):
        s[WEIGHTS + i] = 1.0 / BETTORS
    for i in range(CELLS):
        s[SEEN + i] = 0.0


@njit(inline="always")
def _uniform(w: _Words) -> float:
    # SplitMix64 (Steele, Lea & Flood 2014); never 0 and never 1.
    w[RANDOM] += uint64(0x9E3779B97F4A7C15)
    z = w[RANDOM]
    z = (z ^ (z >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> uint64(27))) * uint64(0x94D049BB133111EB)
    z = z ^ (z >> uint64(31))
    return (float(z >> uint64(12)) + 0.5) / 4503599627370496.0


@njit(inline="always")
def _bin(s: _Floats, x: float) -> int:
    bins = int(s[BINS])
    if s[EDGES] == CATEGORIES:
        return int(x) if 0.0 <= x < bins and x == math.floor(x) else -1
    if x != x:
        return 0
    if x == -np.inf:
        return 1
    if x == np.inf:
        return bins - 1
    first = HEAD + 2 * bins
    low, left = 0, int(s[EDGES])
    while left > 0:
        half = left >> 1
        if s[first + low + half] <= x:
            low += half + 1
            left -= half + 1
        else:
            left = half
    return 2 + low


@njit(inline="always")
def conformal_p(s: _Floats, w: _Words, place: int) -> float:
    """Returns the randomised rank, from below, of an observation among the reference and itself."""
    first = HEAD + int(s[BINS])
    below = 0.0
    for i in range(place):
        below += s[first + i]
    return (below + _uniform(w) * (s[first + place] + 1.0)) / (s[TOTAL] + 1.0)


@njit(inline="always")
def _e_value(s: _Floats, p: float) -> float:
    """Bets the weights on p, moves them, and returns what the stake became."""
    slope = 2.0 * p - 1.0
    spread = 3.0 * slope * slope - 1.0
    seen = 0.0
    for i in range(CELLS):
        seen += s[SEEN + i]
    cell = min(int(p * CELLS), CELLS - 1)
    late = CELLS * (s[SEEN + cell] + _PRIOR) / (seen + CELLS * _PRIOR)
    up, down = 0.5 / math.sqrt(1.0 - p), 0.5 / math.sqrt(p)
    # None, three on higher, three on lower, on a wider and a narrower law, and on what was seen of late.
    gains = (
        1.0,
        1.0 + 0.5 * slope,
        1.0 + slope,
        up,
        1.0 - 0.5 * slope,
        1.0 - slope,
        down,
        1.0 + spread,
        1.0 - 0.5 * spread,
        late,
    )
    value = 0.0
    for i in range(BETTORS):
        s[WEIGHTS + i] *= gains[i]
        value += s[WEIGHTS + i]
    for i in range(BETTORS):
        s[WEIGHTS + i] = (1.0 - _SHARE) * s[WEIGHTS + i] / value + _SHARE / BETTORS
    for i in range(CELLS):
        s[SEEN + i] *= _KEEP
    s[SEEN + cell] += 1.0
    return value


@njit(inline="always")
def drift_step(s: _Floats, w: _Words, x: float) -> int:
    """One observation."""
    place = _bin(s, x)
    if place < 0:
        return REFUSED  # 16
    if s[FIRED] != 0.0:
        drift_clear(s)
    p = conformal_p(s, w, place)
    if s[LEARNS] != 0.0:
        s[HEAD + int(s[BINS]) + place] += 1.0
        s[TOTAL] += 1.0
    s[N] += 1.0
    s[NULLS] = _KEEP * s[NULLS] + (1.0 if place == 0 else 0.0)
    s[CAPITAL] = (s[CAPITAL] + s[RESTARTS]) * _e_value(s, p)
    if s[CAPITAL] < s[BOUND]:
        return 0
    s[FIRED] = 1.0
    if s[EDGES] == CATEGORIES:
        return CHANGE
    seen, mean = 0.0, 0.0
    for i in range(CELLS):
        seen += s[SEEN + i]
        mean += s[SEEN + i] * ((i + 0.5) / CELLS - 0.5)
    # More nulls are no smaller values, though their bin is the first.
    nulls = s[HEAD] / s[N_REFERENCE]
    if s[NULLS] / seen > nulls + 2.0 * math.sqrt((nulls * (1.0 - nulls) + 1.0 / seen) / seen):
        return CHANGE
    # Two standard errors of a mean of uniform numbers; within them what has changed is not the place.
    if abs(mean) * math.sqrt(12.0 * seen) <= 2.0 * seen:
        return CHANGE
    return CHANGE | (UP if mean > 0.0 else DOWN)


@njit(cache=True)
def drift_one(address: float, x: float) -> int:
    """One observation."""
    s = view(address)
    return drift_step(s, s.view(np.uint64), x)


@njit(cache=True, nogil=True)
def drift_many(address: float, xs: _Floats, codes: _Codes) -> None:
    """A batch."""
    s = view(address)
    w = s.view(np.uint64)
    for i in range(len(xs)):
        codes[i] = drift_step(s, w, xs[i])


@njit(cache=True)
def p_values(s: _Floats, xs: _Floats, out: _Floats) -> None:
    """Writes the p-values of a batch without betting on them; the state moves on as if it had."""
    w = s.view(np.uint64)
    for i in range(len(xs)):
        place = _bin(s, xs[i])
        out[i] = conformal_p(s, w, place)
        if s[LEARNS] != 0.0:
            s[HEAD + int(s[BINS]) + place] += 1.0
            s[TOTAL] += 1.0
