"""Compiled adaptive windowing. Import inside the function that needs it.

A state is one array of 8-byte places, read as numbers (`s`) or whole numbers (`w`), whichever is kept there.

The window is River's: buckets of 1, 2, 4, ... observations, each with its sum and its squared deviations, merged two
by two where a level holds too many. To look at every cut costs a square root and four divisions each, so there is a
sieve before it: each bucket also knows how many observations lie up to its end, and their sum, and one loop without
division over all of them asks whether any cut could reach a bound that is below River's. Where none can, which is
nearly always, nothing was found; else River's own loop decides, in its own order of operations. So the answer is
always River's, and a look at every observation costs little.
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from vitok.stats.detectors_kernels import CHANGE, DOWN, FIRED, REFUSED, UP, view

LEVELS = 48
"""Of the buckets; the last holds 2 to the 47th observations."""

(
    WIDTH,
    TOTAL,
    SQUARES,
    LEFT,
    TOP,
    SUM,
    PEAK,
    STALE,
    LOG_AT,
    LOG,
    DELTA,
    CLOCK,
    MOST,
    LEAST_PART,
    GRACE,
    KEEPS,
) = range(1, 17)
HEAD = 17

_Floats = NDArray[np.float64]
_Words = NDArray[np.int64]
_Codes = NDArray[np.uint8]

_REBUILD_EVERY = 4096
# Sums below this keep the rounding of the sieve under a hundredth of the bound's smallest possible value.
_LARGEST_PEAK = 1e10
_LARGEST_SQUARES = 1e60


def size(max_buckets: int) -> int:
    """Returns the places of a state: of each level how many buckets it holds and which is oldest, and the buckets."""
    return HEAD + 2 * LEVELS + 4 * LEVELS * (max_buckets + 1)


@njit(cache=True)
def adwin_clear(s: _Floats, w: _Words) -> None:
    """Empties the window."""
    s[:LOG_AT] = 0.0
    w[LEFT] = w[CLOCK]
    s[LOG_AT] = np.inf
    # Not to the end of the array: `one` sees no end.
    s[HEAD : HEAD + 2 * LEVELS + 4 * LEVELS * (w[MOST] + 1)] = 0.0


@njit(inline="always")
def _places(w: _Words) -> tuple[int, int, int, int, int]:
    each = w[MOST] + 1
    sums = HEAD + 2 * LEVELS
    return each, sums, sums + LEVELS * each, sums + 2 * LEVELS * each, sums + 3 * LEVELS * each


@njit(inline="always")
def _bucket(w: _Words, level: int, number: int) -> int:
    # The buckets of a level go round, so that taking the oldest moves nothing.
    each = w[MOST] + 1
    at = w[HEAD + LEVELS + level] + number
    return level * each + (at - each if at >= each else at)


@njit(inline="always")
def _take_oldest(s: _Floats, w: _Words, level: int) -> None:
    each, _, _, counts, _ = _places(w)
    oldest = w[HEAD + LEVELS + level]
    # A place without a bucket counts no observations, so that the sieve takes it for a cut that is too early.
    s[counts + level * each + oldest] = 0.0
    w[HEAD + LEVELS + level] = oldest + 1 if oldest + 1 < each else 0
    w[HEAD + level] -= 1


@njit(cache=True)
def _rebuild(s: _Floats, w: _Words) -> None:
    # What lies up to each bucket, summed again: after the oldest were dropped, and now and then against rounding.
    _, sums, _, counts, totals = _places(w)
    n, total, peak = 0.0, 0.0, abs(s[TOTAL])
    for level in range(w[TOP], -1, -1):
        bucket = float(1 << level)
        for k in range(w[HEAD + level]):
            i = _bucket(w, level, k)
            n += bucket
            total += s[sums + i]
            s[counts + i] = n
            s[totals + i] = total
            peak = max(peak, abs(total))
    s[SUM] = total
    s[PEAK] = peak
    w[STALE] = 0


@njit(inline="always")
def _insert(s: _Floats, w: _Words, x: float) -> None:
    each, sums, squares, counts, totals = _places(w)
    held = w[HEAD]
    width = s[WIDTH] + 1.0
    if width > 1.0:
        gap = x - s[TOTAL] / (width - 1.0)
        s[SQUARES] += (width - 1.0) * gap * gap / width
    s[WIDTH] = width
    s[TOTAL] += x
    s[SUM] += x
    w[STALE] += 1
    s[PEAK] = max(s[PEAK], abs(s[SUM]), abs(s[TOTAL]))
    at = _bucket(w, 0, held)
    s[sums + at] = x
    s[squares + at] = 0.0
    s[counts + at] = width
    s[totals + at] = s[SUM]
    w[HEAD] = held + 1
    level = 0
    while w[HEAD + level] == each:
        bucket = float(1 << level)
        first, second = _bucket(w, level, 0), _bucket(w, level, 1)
        to = _bucket(w, level + 1, w[HEAD + level + 1])
        gap = s[sums + first] / bucket - s[sums + second] / bucket
        s[sums + to] = s[sums + first] + s[sums + second]
        s[squares + to] = s[squares + first] + s[squares + second] + bucket * 0.5 * gap * gap
        s[counts + to] = s[counts + second]
        s[totals + to] = s[totals + second]
        s[counts + first] = s[counts + second] = 0.0
        w[HEAD + LEVELS + level] = _bucket(w, level, 2) - level * each
        w[HEAD + level] = each - 2
        level += 1
        w[HEAD + level] += 1
        if level > w[TOP]:
            w[TOP] = level


@njit(inline="always")
def _drop_oldest(s: _Floats, w: _Words) -> float:
    _, sums, squares, _, _ = _places(w)
    top = w[TOP]
    oldest = _bucket(w, top, 0)
    n = float(1 << top)
    total = s[sums + oldest]
    mean = total / n
    s[WIDTH] -= n
    s[TOTAL] -= total
    rest = s[TOTAL] / s[WIDTH]
    s[SQUARES] -= s[squares + oldest] + n * s[WIDTH] * (mean - rest) * (mean - rest) / (n + s[WIDTH])
    _take_oldest(s, w, top)
    if w[HEAD + top] == 0 and top > 0:
        w[TOP] = top - 1
    return total


@njit(inline="always")
def _may_cut(s: _Floats, w: _Words) -> bool:
    each, _, _, counts, totals = _places(w)
    width, total, least = s[WIDTH], s[TOTAL], s[LEAST_PART]
    if not (s[PEAK] < _LARGEST_PEAK and 0.0 <= s[SQUARES] < _LARGEST_SQUARES):
        return True
    if width < s[LOG_AT] or width > 1.02 * s[LOG_AT]:
        # It grows with the width, so that an older one is at most the present one.
        s[LOG] = math.log(2.0 * math.log(width) / s[DELTA])
        s[LOG_AT] = width
    log = s[LOG]
    if not log > 0.0:
        return True
    less = least - 1.0
    both = width - 2.0 * less
    # The bound is sqrt(A) + B; its square is at least A + B^2, here less 8 % for what was rounded on the way.
    by_spread = 0.92 * 2.0 * (s[SQUARES] / width) * log * both
    by_log = 0.92 * 4.0 / 9.0 * log * log * both * both
    # Slices, counted from their start, are what the compiler turns into vector instructions.
    places = (w[TOP] + 1) * each
    up_to, sums = s[counts : counts + places], s[totals : totals + places]
    above = 0
    for i in range(places):
        n = up_to[i]
        rest = width - n
        gap = sums[i] * width - total * n
        inner = (n - less) * (rest - less)
        outer = n * rest
        gap *= inner
        far = gap * gap > (by_spread * inner + by_log) * outer * outer
        above += far and n >= least and rest >= least
    return above != 0


@njit(cache=True)
def _first_cut(s: _Floats, w: _Words) -> bool:
    # Oldest first, and summed in this order, as River does: which cut is found decides what is dropped.
    _, sums, _, _, _ = _places(w)
    width, least = s[WIDTH], s[LEAST_PART]
    log = math.log(2.0 * math.log(width) / s[DELTA])
    spread = s[SQUARES] / width
    n_old, n_new, old, new = 0.0, width, 0.0, s[TOTAL]
    for level in range(w[TOP], -1, -1):
        bucket = float(1 << level)
        held = w[HEAD + level]
        for k in range(held):
            n_old += bucket
            n_new -= bucket
            part = s[sums + _bucket(w, level, k)]
            old += part
            new -= part
            if level == 0 and k == held - 1:
                return False
            if n_new >= least and n_old >= least:
                share = 1.0 / (n_old - least + 1.0) + 1.0 / (n_new - least + 1.0)
                inside = 2.0 * share * spread * log
                # Rounding may leave a spread below 0, of which River's root is no number and finds nothing.
                if inside >= 0.0:
                    bound = math.sqrt(inside) + 2.0 / 3.0 * log * share
                    if abs(old / n_old - new / n_new) > bound:
                        return True
    return False


@njit(inline="always")
def adwin_step(s: _Floats, w: _Words, x: float) -> int:
    """Adaptive windowing."""
    if not abs(x) < np.inf:
        return REFUSED  # 16
    if s[FIRED] != 0.0:
        s[FIRED] = 0.0
        if s[KEEPS] == 0.0:
            adwin_clear(s, w)
    _insert(s, w, x)
    w[LEFT] -= 1
    if w[LEFT] > 0:
        return 0
    w[LEFT] = w[CLOCK]
    if not s[WIDTH] > s[GRACE]:
        return 0
    if w[STALE] >= _REBUILD_EVERY:
        _rebuild(s, w)
    if not _may_cut(s, w):
        return 0
    before, dropped = s[WIDTH], 0.0
    while _first_cut(s, w):
        dropped += _drop_oldest(s, w)
    if s[WIDTH] == before:
        return 0
    _rebuild(s, w)
    s[LOG_AT] = np.inf
    s[FIRED] = 1.0
    return CHANGE | (UP if s[TOTAL] / s[WIDTH] > dropped / (before - s[WIDTH]) else DOWN)


@njit(cache=True)
def adwin_one(address: int, x: float) -> int:
    """One observation."""
    s = view(address)
    return adwin_step(s, s.view(np.int64), x)


@njit(cache=True, nogil=True)
def adwin_many(address: int, xs: _Floats, codes: _Codes) -> None:
    """A batch."""
    s = view(address)
    w = s.view(np.int64)
    for i in range(len(xs)):
        codes[i] = adwin_step(s, w, xs[i])
