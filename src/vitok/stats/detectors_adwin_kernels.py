"""Compiled adaptive windowing. Import inside the function that needs it.

A state is one array of 8-byte places, read as numbers (`s`) or whole numbers (`w`), whichever is kept there.

The window is River's: buckets of 1, 2, 4, ... observations, each with its sum and its squared deviations, merged two
by two where a level holds too many. To look at every cut costs a square root and four divisions each, so there is a
sieve before it: each bucket also knows how many observations lie up to its end, and their sum, and a loop without
division asks whether any cut could reach a bound that is below River's. For the cuts of the two newest levels it asks
at each look. Those of the others hardly change from one observation to the next: it asks for them whether any could
reach the bound within the next few observations, as long as the mean stays within some room, and then leaves them
alone for so long. Where a cut might reach it, the whole bound is asked, and where that is reached, River's own loop
decides, in its own order of operations. So the answer is always River's, and a look at every observation costs little.
"""

import math
from typing import TypeAlias

import numpy as np
from numba import njit, uint64
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
HELD, OLDEST, BUCKETS = HEAD, HEAD + LEVELS, HEAD + 2 * LEVELS

_Floats = NDArray[np.float64]
_Words = NDArray[np.int64]
_Unsigned = NDArray[np.uint64]
_Codes = NDArray[np.uint8]
_Sieved: TypeAlias = tuple[float, float, float]
_Hot: TypeAlias = tuple[float, float, float, float, float, float, int, int, _Sieved]

# For places that need no look whether they are below 0.
_0, _1, _2, _TO_OLDEST = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(LEVELS)

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
    places = LEVELS * (w[MOST] + 1)
    s[HEAD : HEAD + 2 * LEVELS + 4 * places] = 0.0
    counts = HEAD + 2 * LEVELS + 2 * places
    s[counts : counts + places] = np.nan


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
def _merge(s: _Floats, u: _Unsigned, each: int, region: int) -> None:
    level, row, size, share = uint64(HELD), uint64(BUCKETS), 1.0, 1.0
    held = each
    while held == each:
        oldest = u[level + _TO_OLDEST]
        after = oldest + _1 if oldest + _1 < each else _0
        first, second = row + oldest, row + after
        above = u[level + _1]
        to = u[level + _1 + _TO_OLDEST] + above
        row += each
        to = row + (to - each if to >= each else to)
        # The share is a power of 2: to multiply by it is to divide, in every bit.
        gap = s[first] * share - s[second] * share
        s[to] = s[first] + s[second]
        first, second, to = first + region, second + region, to + region
        s[to] = s[first] + s[second] + size * 0.5 * gap * gap
        first, second, to = first + region, second + region, to + region
        s[to] = s[second]
        # A place without a bucket has no number of observations, so that the sieve's comparisons fail there.
        s[first] = np.nan
        s[second] = np.nan
        s[to + region] = s[second + region]
        u[level + _TO_OLDEST] = after + _1 if after + _1 < each else _0
        u[level] = held - _2
        level += _1
        size *= 2.0
        share *= 0.5
        held = above + _1
        u[level] = held
        if above == _0 and level - uint64(HELD) > u[TOP]:
            u[TOP] = level - uint64(HELD)


@njit(inline="always")
def _drop_oldest(s: _Floats, w: _Words) -> float:
    each, sums, squares, counts, _ = _places(w)
    top = w[TOP]
    oldest = _bucket(w, top, 0)
    n = float(1 << top)
    total = s[sums + oldest]
    mean = total / n
    s[WIDTH] -= n
    s[TOTAL] -= total
    rest = s[TOTAL] / s[WIDTH]
    s[SQUARES] -= s[squares + oldest] + n * s[WIDTH] * (mean - rest) * (mean - rest) / (n + s[WIDTH])
    s[counts + oldest] = np.nan
    w[HEAD + LEVELS + top] = oldest - top * each + 1 if oldest - top * each + 1 < each else 0
    w[HEAD + top] -= 1
    if w[HEAD + top] == 0 and top > 0:
        w[TOP] = top - 1
    return total


@njit(inline="always")
def _near(s: _Floats, w: _Words, width: float, mean: float, by_spread: float, by_log: float) -> bool:
    # The cuts of the two newest levels. The newest has at most as many observations after each of its buckets as it
    # may hold others. One by one: these places were just written, and a vector would have to wait for them.
    each, _, _, counts, totals = _places(w)
    least = s[LEAST_PART]
    less = least - 1.0
    start = each if least >= each - 1.0 else 0
    up_to, sums = s[counts + start : counts + 2 * each], s[totals + start : totals + 2 * each]
    above = False
    for i in range(2 * each - start):
        n = up_to[i]
        rest = width - n
        gap = sums[i] - mean * n
        above |= (gap * gap > by_spread * ((n - less) * (rest - less)) + by_log) & (n >= least) & (rest >= least)
    return above


@njit(inline="always")
def _far(
    s: _Floats, w: _Words, width: float, mean: float, by_spread: float, by_log: float, room: float, start: int
) -> bool:
    # The cuts of all levels from `start`, as long as the mean does not move by more than the room. With room, those of
    # the second level are there for the time when they come to the third, and so have as much after them as that.
    each, _, _, counts, totals = _places(w)
    least = s[LEAST_PART]
    less = least - 1.0
    after = max(least, 3.0 * (each - 2.0)) - less
    places = ((w[TOP] + 1 - start) * each + 7) & -8
    # Slices, counted from their start, are what the compiler turns into vector instructions.
    up_to = s[counts + start * each : counts + start * each + places]
    sums = s[totals + start * each : totals + start * each + places]
    far = width - less
    above = False
    for i in range(places):
        n = up_to[i]
        rest = far - n
        rest = rest if rest > after else after
        gap = abs(sums[i] - mean * n) + room * n
        above |= (gap * gap > by_spread * ((n - less) * rest) + by_log) & (n >= least)
    return above


@njit(inline="always")
def _may_cut(
    s: _Floats, w: _Words, width: float, mean: float, spread: float, peak: float, sieved: _Sieved
) -> tuple[bool, _Sieved]:
    if not (peak < _LARGEST_PEAK and 0.0 <= spread < _LARGEST_SQUARES and w[TOP] < LEVELS - 8):
        return True, sieved
    if width < s[LOG_AT] or width > 1.02 * s[LOG_AT]:
        # It grows with the width, so that an older one is at most the present one.
        s[LOG] = math.log(2.0 * math.log(width) / s[DELTA])
        s[LOG_AT] = width
    log = s[LOG]
    if not log > 0.0:
        return True, sieved
    least = s[LEAST_PART]
    if width < 2.0 * least:
        return False, sieved
    both = width - 2.0 * (least - 1.0)
    share = 1.0 / width
    by_log = 0.92 * 4.0 / 9.0 * (log * both * share) * (log * both * share)
    by_spread = 0.92 * 2.0 * spread * log * both * share * share * share
    if _near(s, w, width, mean, by_spread, by_log):
        return True, sieved
    until, around, room = sieved
    if width <= until and abs(mean - around) <= room:
        return False, sieved
    ahead = 2.0 * w[MOST] - 3.0
    if w[CLOCK] < ahead:
        room = 1.5 * math.sqrt(spread * ahead * share) * share
        later = width / (width + ahead)
        if not _far(s, w, width, mean, by_spread * later * later * later, by_log, room, 1):
            return False, (width + ahead, mean, room)
    return _far(s, w, width, mean, by_spread, by_log, 0.0, 2), (0.0, 0.0, 0.0)


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


@njit(cache=True)
def _closer(s: _Floats, w: _Words) -> bool:
    # The same question with the whole bound, less 4 %; only for what passed the sieve.
    each, _, _, counts, totals = _places(w)
    width, least = s[WIDTH], s[LEAST_PART]
    less = least - 1.0
    mean, both = s[TOTAL] / width, width - 2.0 * less
    log = math.log(2.0 * math.log(width) / s[DELTA])
    by_spread, by_log = 2.0 * (s[SQUARES] / width) * log * both, 2.0 / 3.0 * log * both
    if not (s[PEAK] < _LARGEST_PEAK and 0.0 <= by_spread < _LARGEST_SQUARES and log > 0.0):
        return True
    up_to, sums = s[counts : counts + (w[TOP] + 1) * each], s[totals : totals + (w[TOP] + 1) * each]
    above = False
    for i in range((w[TOP] + 1) * each):
        n = up_to[i]
        rest = width - n
        if n >= least and rest >= least:
            inner = (n - less) * (rest - less)
            gap = abs(sums[i] - mean * n) * width
            above |= gap * inner > 0.96 * (math.sqrt(by_spread * inner) + by_log) * n * rest
    return above


@njit(cache=True)
def _look(s: _Floats, w: _Words) -> int:
    if w[STALE] >= _REBUILD_EVERY:
        _rebuild(s, w)
    elif not _closer(s, w):
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


@njit(inline="always")
def _read(s: _Floats, w: _Words) -> _Hot:
    mean = s[TOTAL] / s[WIDTH] if s[WIDTH] > 0.0 else 0.0
    return s[WIDTH], s[TOTAL], s[SQUARES], s[SUM], s[PEAK], mean, w[LEFT], w[STALE], (0.0, 0.0, 0.0)


@njit(inline="always")
def _write(s: _Floats, w: _Words, hot: _Hot) -> None:
    s[WIDTH], s[TOTAL], s[SQUARES], s[SUM], s[PEAK], _, w[LEFT], w[STALE], _ = hot


@njit(inline="always")
def _step(s: _Floats, w: _Words, x: float, hot: _Hot) -> tuple[int, _Hot]:
    width, total, squares, running, peak, mean, left, stale, sieved = hot
    if not abs(x) < np.inf:
        return REFUSED, hot  # 16
    if s[FIRED] != 0.0:
        s[FIRED] = 0.0
        if s[KEEPS] == 0.0:
            adwin_clear(s, w)
            width = total = squares = running = peak = 0.0
            left, stale = w[LEFT], 0
            sieved = (0.0, 0.0, 0.0)
    # One observation is a bucket of its own.
    if width > 0.0:
        gap = x - mean
        squares += width * gap * gap / (width + 1.0)
    width += 1.0
    total += x
    mean = total / width
    running += x
    stale += 1
    left -= 1
    if abs(running) > peak:
        peak = abs(running)
    if abs(total) > peak:
        peak = abs(total)
    u = s.view(np.uint64)
    each = u[MOST] + _1
    region = uint64(LEVELS) * each
    held = u[HELD]
    at = u[HELD + LEVELS] + held
    at = uint64(BUCKETS) + (at - each if at >= each else at)
    s[at] = x
    s[at + region] = 0.0
    s[at + region + region] = width
    s[at + region + region + region] = running
    u[HELD] = held + _1
    if held + _1 == each:
        _merge(s, u, each, region)
    if left > 0:
        return 0, (width, total, squares, running, peak, mean, left, stale, sieved)
    left = w[CLOCK]
    if not width > s[GRACE]:
        return 0, (width, total, squares, running, peak, mean, left, stale, sieved)
    if stale < _REBUILD_EVERY:
        may, sieved = _may_cut(s, w, width, mean, squares, peak, sieved)
        if not may:
            return 0, (width, total, squares, running, peak, mean, left, stale, sieved)
    _write(s, w, (width, total, squares, running, peak, mean, left, stale, sieved))
    code = _look(s, w)
    return code, _read(s, w)


@njit(cache=True)
def adwin_one(address: float, x: float) -> int:
    """One observation."""
    s = view(address)
    w = s.view(np.int64)
    code, hot = _step(s, w, x, _read(s, w))
    _write(s, w, hot)
    return code


@njit(cache=True, nogil=True)
def adwin_many(address: float, xs: _Floats, codes: _Codes) -> None:
    """A batch."""
    s = view(address)
    w = s.view(np.int64)
    hot = _read(s, w)
    for i in range(len(xs)):
        codes[i], hot = _step(s, w, xs[i], hot)
    _write(s, w, hot)
