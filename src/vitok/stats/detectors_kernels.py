"""Compiled steps of the detectors that keep a few numbers. Import inside the function that needs it.

A detector's state is one array of 8-byte places, parameters first. `step` takes it one observation further and returns
a code: bits for a change, a warning, and their direction. `one` takes one observation, `many` goes through a batch.
Both run the same `step`, in IEEE arithmetic without shortcuts, so that they agree to the last bit; and both find the
array by its address: to unpack an array costs a single call more than the step itself, and to count the references
to it costs a batch twice as much.

The order of every operation is that of River 0.26.1: a detection is a comparison of two floats, and a sum taken in
another order may fall on the other side.
"""

import math
from typing import Any

import numpy as np
from numba import carray, float64, njit, types, uint8
from numba.extending import intrinsic
from numpy.typing import NDArray

# numba's cache notes the text of one file: where a value here changes, those who import it must change as well.
CHANGE, WARNING, UP, DOWN = 1, 2, 4, 8
# Larger than any sum of these, so that looking up its verdict fails.
REFUSED = 16

# Only for the type of the view: nothing checks an index against it.
_ROOM = 1 << 30

# What `one` and `many` are compiled for. The address comes as a float, which numba reads from Python in less time than
# a whole number; it is exact, since addresses stay below 2 to the 53rd, or are multiples of 8 where they do not.
ONE = (float64, float64)
MANY = (float64, types.Array(float64, 1, "C", readonly=True), types.Array(uint8, 1, "C"))
WITHIN = (types.Array(float64, 1, "C", readonly=True), float64, float64)

_Floats = NDArray[np.float64]
_Codes = NDArray[np.uint8]

# Every state begins so.
FIRED, N, MEAN = 0, 1, 2


@njit(inline="always")
def _mean_with(s: _Floats, x: float) -> None:
    s[N] += 1.0
    s[MEAN] += (1.0 / s[N]) * (x - s[MEAN])


PH_UP, PH_DOWN, PH_LEAST, PH_MOST, PH_FIRST, PH_DELTA, PH_THRESHOLD, PH_ALPHA, PH_MODE = range(3, 12)
PH_SIZE = 12


@njit(cache=True)
def page_hinkley_step(s: _Floats, x: float) -> int:
    """Page-Hinkley; `PH_MODE` is 0 for both directions, 1 for up, -1 for down."""
    if not abs(x) < np.inf:
        return REFUSED
    if s[FIRED] != 0.0:
        s[:PH_LEAST] = 0.0
        s[PH_LEAST] = np.inf
        s[PH_MOST] = -1.0
    _mean_with(s, x)
    deviation = x - s[MEAN]
    s[PH_UP] = s[PH_ALPHA] * s[PH_UP] + deviation - s[PH_DELTA]
    s[PH_DOWN] = s[PH_ALPHA] * s[PH_DOWN] + deviation + s[PH_DELTA]
    if s[PH_UP] < s[PH_LEAST]:
        s[PH_LEAST] = s[PH_UP]
    if s[PH_DOWN] > s[PH_MOST]:
        s[PH_MOST] = s[PH_DOWN]
    if s[N] < s[PH_FIRST]:
        return 0
    risen = s[PH_UP] - s[PH_LEAST]
    fallen = s[PH_MOST] - s[PH_DOWN]
    up = s[PH_MODE] >= 0.0 and risen > s[PH_THRESHOLD]
    down = s[PH_MODE] <= 0.0 and fallen > s[PH_THRESHOLD]
    if not (up or down):
        return 0
    s[FIRED] = 1.0
    return CHANGE | (UP if up and (risen >= fallen or not down) else DOWN)


DDM_P, DDM_S, DDM_SUM, DDM_FIRST, DDM_WARN, DDM_DRIFT = range(3, 9)
DDM_SIZE = 9


@njit(cache=True)
def ddm_step(s: _Floats, x: float) -> int:
    """Drift detection method."""
    if not 0.0 <= x <= 1.0:
        return REFUSED
    if s[FIRED] != 0.0:
        s[:DDM_SUM] = 0.0
        s[DDM_SUM] = np.inf
    _mean_with(s, x)
    p = s[MEAN]
    # Fractions between 0 and 1 may round to a mean just outside.
    deviation = math.sqrt(max(p * (1.0 - p) / s[N], 0.0))
    if s[N] <= s[DDM_FIRST]:
        return 0
    if p + deviation <= s[DDM_SUM]:
        s[DDM_P] = p
        s[DDM_S] = deviation
        s[DDM_SUM] = p + deviation
    if p + deviation > s[DDM_P] + s[DDM_DRIFT] * s[DDM_S]:
        s[FIRED] = 1.0
        return CHANGE | UP
    if p + deviation > s[DDM_P] + s[DDM_WARN] * s[DDM_S]:
        return WARNING | UP
    return 0


# Here N and MEAN are of the distances between errors.
EDDM_SQUARES, EDDM_SEEN, EDDM_LAST, EDDM_WARNED, EDDM_MOST, EDDM_FIRST, EDDM_ALPHA, EDDM_BETA = range(3, 11)
EDDM_SIZE = 11


@njit(cache=True)
def eddm_step(s: _Floats, x: float) -> int:
    """Early drift detection method."""
    if x != 0.0 and x != 1.0:
        return REFUSED
    if s[FIRED] != 0.0:
        s[:EDDM_MOST] = 0.0
        s[EDDM_MOST] = -1.0
    s[EDDM_SEEN] += 1.0
    if x == 1.0:
        distance = s[EDDM_SEEN] - s[EDDM_LAST]
        before = s[MEAN]
        _mean_with(s, distance)
        s[EDDM_SQUARES] += (distance - before) * (distance - s[MEAN])
        if s[EDDM_SEEN] > s[EDDM_FIRST]:
            variance = s[EDDM_SQUARES] / (s[N] - 1.0) if s[N] > 1.0 else 0.0
            far = s[MEAN] + 2.0 * math.sqrt(variance)
            if far > s[EDDM_MOST]:
                s[EDDM_MOST] = far
            elif s[N] > s[EDDM_FIRST]:
                level = far / s[EDDM_MOST]
                if level < s[EDDM_BETA]:
                    s[FIRED] = 1.0
                else:
                    s[EDDM_WARNED] = 1.0 if level < s[EDDM_ALPHA] else 0.0
        s[EDDM_LAST] = s[EDDM_SEEN]
    code = UP if s[FIRED] != 0.0 or s[EDDM_WARNED] != 0.0 else 0
    return code | (CHANGE if s[FIRED] != 0.0 else 0) | (WARNING if s[EDDM_WARNED] != 0.0 else 0)


@njit(inline="always")
def _answer(s: _Floats, up: int, down: int) -> int:
    # Up and down are 0 for nothing, 1 for a warning, 2 for a change; a change's direction goes before a warning's.
    code = (CHANGE if max(up, down) == 2 else 0) | (WARNING if up == 1 or down == 1 else 0)
    if code & CHANGE:
        s[FIRED] = 1.0
    if up == 0 and down == 0:
        return 0
    return code | (UP if up >= down else DOWN)


(
    HA_LEAST_N,
    HA_LEAST,
    HA_MOST_N,
    HA_MOST,
    HA_BOUND,
    HA_DRIFT,
    HA_WARN,
    HA_TWO_SIDED,
) = range(3, 11)
HA_SIZE = 11


@njit(inline="always")
def _moved(s: _Floats, n_before: float, gap: float) -> int:
    if n_before == s[N]:
        return 0
    spread = (s[N] - n_before) / n_before * (1.0 / s[N])
    if gap >= math.sqrt(spread / 2.0 * s[HA_DRIFT]):
        return 2
    return 1 if gap >= math.sqrt(spread / 2.0 * s[HA_WARN]) else 0


@njit(cache=True)
def hddm_a_step(s: _Floats, x: float) -> int:
    """Hoeffding's bounds on averages; the logarithms of the confidences come as parameters."""
    if not 0.0 <= x <= 1.0:
        return REFUSED
    if s[FIRED] != 0.0:
        s[:HA_BOUND] = 0.0
    _mean_with(s, x)
    if s[HA_LEAST_N] == 0.0:
        s[HA_LEAST_N] = s[HA_MOST_N] = s[N]
        s[HA_LEAST] = s[HA_MOST] = s[MEAN]
    now = math.sqrt(1.0 / (2.0 * s[N]) * s[HA_BOUND])
    if s[HA_LEAST] + math.sqrt(1.0 / (2.0 * s[HA_LEAST_N]) * s[HA_BOUND]) >= s[MEAN] + now:
        s[HA_LEAST_N] = s[N]
        s[HA_LEAST] = s[MEAN]
    if s[HA_TWO_SIDED] == 0.0:
        return _answer(s, _moved(s, s[HA_LEAST_N], s[MEAN] - s[HA_LEAST]), 0)
    if s[HA_MOST] - math.sqrt(1.0 / (2.0 * s[HA_MOST_N]) * s[HA_BOUND]) <= s[MEAN] - now:
        s[HA_MOST_N] = s[N]
        s[HA_MOST] = s[MEAN]
    up = _moved(s, s[HA_LEAST_N], s[MEAN] - s[HA_LEAST])
    return _answer(s, up, _moved(s, s[HA_MOST_N], s[HA_MOST] - s[MEAN]))


# A weighted mean is three places: whether it has begun, its value, and the bound's share of independence.
HW_TOTAL, HW_UP_BEFORE, HW_UP_AFTER, HW_DOWN_BEFORE, HW_DOWN_AFTER = 3, 6, 9, 12, 15
HW_UP_CUT, HW_DOWN_CUT, HW_DRIFT, HW_WARN, HW_WEIGHT, HW_WEIGHT_SQUARED, HW_REST_SQUARED, HW_TWO_SIDED = range(18, 26)
HW_SIZE = 26


@njit(cache=True)
def hddm_w_clear(s: _Floats) -> None:
    """Makes an HDDM_W begin anew."""
    s[:HW_UP_CUT] = 0.0
    for place in (HW_TOTAL, HW_UP_BEFORE, HW_UP_AFTER, HW_DOWN_BEFORE, HW_DOWN_AFTER):
        s[place + 2] = 1.0
    s[HW_UP_CUT] = np.inf
    s[HW_DOWN_CUT] = -np.inf


@njit(inline="always")
def _weigh(s: _Floats, place: int, x: float) -> None:
    if s[place] == 0.0:
        s[place] = 1.0
        s[place + 1] = x
    else:
        s[place + 1] = s[HW_WEIGHT] * x + (1.0 - s[HW_WEIGHT]) * s[place + 1]
    s[place + 2] = s[HW_WEIGHT_SQUARED] + s[HW_REST_SQUARED] * s[place + 2]


@njit(inline="always")
def _cut(s: _Floats, before: int, after: int) -> None:
    for i in range(3):
        s[before + i] = s[HW_TOTAL + i]
    s[after] = 0.0
    s[after + 1] = 0.0
    s[after + 2] = 1.0


@njit(inline="always")
def _apart(s: _Floats, low: int, high: int) -> int:
    if s[low] == 0.0 or s[high] == 0.0:
        return 0
    share = s[low + 2] + s[high + 2]
    gap = s[high + 1] - s[low + 1]
    if gap > math.sqrt(share * s[HW_DRIFT] / 2.0):
        return 2
    return 1 if gap > math.sqrt(share * s[HW_WARN] / 2.0) else 0


@njit(cache=True)
def hddm_w_step(s: _Floats, x: float) -> int:
    """McDiarmid's bounds on exponentially weighted averages."""
    if not 0.0 <= x <= 1.0:
        return REFUSED
    if s[FIRED] != 0.0:
        hddm_w_clear(s)
    _weigh(s, HW_TOTAL, x)
    bound = math.sqrt(s[HW_TOTAL + 2] * s[HW_DRIFT] / 2.0)
    if s[HW_TOTAL + 1] + bound < s[HW_UP_CUT]:
        s[HW_UP_CUT] = s[HW_TOTAL + 1] + bound
        _cut(s, HW_UP_BEFORE, HW_UP_AFTER)
    else:
        _weigh(s, HW_UP_AFTER, x)
    up = _apart(s, HW_UP_BEFORE, HW_UP_AFTER)
    if s[HW_TWO_SIDED] == 0.0:
        return _answer(s, up, 0)
    if s[HW_TOTAL + 1] - bound > s[HW_DOWN_CUT]:
        s[HW_DOWN_CUT] = s[HW_TOTAL + 1] - bound
        _cut(s, HW_DOWN_BEFORE, HW_DOWN_AFTER)
    else:
        _weigh(s, HW_DOWN_AFTER, x)
    return _answer(s, up, _apart(s, HW_DOWN_AFTER, HW_DOWN_BEFORE))


@intrinsic
def _pointer(_typing: Any, _address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(float64)(types.intp), generate


@njit(inline="always")
def view(address: float) -> _Floats:
    """Returns the state that lies at an address."""
    return carray(_pointer(int(address)), (_ROOM,))


@njit(cache=True)
def all_within(xs: _Floats, lowest: float, highest: float) -> bool:
    """Returns whether all are finite and from `lowest` to `highest`."""
    # To the end in any case: a loop that may leave early is no loop of vector instructions.
    fine = True
    for i in range(len(xs)):
        fine &= (abs(xs[i]) < np.inf) & (xs[i] >= lowest) & (xs[i] <= highest)
    return fine


@njit(cache=True)
def page_hinkley_one(address: float, x: float) -> int:
    """One observation."""
    return page_hinkley_step(view(address), x)


@njit(cache=True, nogil=True)
def page_hinkley_many(address: float, xs: _Floats, codes: _Codes) -> None:
    """A batch."""
    s = view(address)
    for i in range(len(xs)):
        codes[i] = page_hinkley_step(s, xs[i])


@njit(cache=True)
def ddm_one(address: float, x: float) -> int:
    """One observation."""
    return ddm_step(view(address), x)


@njit(cache=True, nogil=True)
def ddm_many(address: float, xs: _Floats, codes: _Codes) -> None:
    """A batch."""
    s = view(address)
    for i in range(len(xs)):
        codes[i] = ddm_step(s, xs[i])


@njit(cache=True)
def eddm_one(address: float, x: float) -> int:
    """One observation."""
    return eddm_step(view(address), x)


@njit(cache=True, nogil=True)
def eddm_many(address: float, xs: _Floats, codes: _Codes) -> None:
    """A batch."""
    s = view(address)
    for i in range(len(xs)):
        codes[i] = eddm_step(s, xs[i])


@njit(cache=True)
def hddm_a_one(address: float, x: float) -> int:
    """One observation."""
    return hddm_a_step(view(address), x)


@njit(cache=True, nogil=True)
def hddm_a_many(address: float, xs: _Floats, codes: _Codes) -> None:
    """A batch."""
    s = view(address)
    for i in range(len(xs)):
        codes[i] = hddm_a_step(s, xs[i])


@njit(cache=True)
def hddm_w_one(address: float, x: float) -> int:
    """One observation."""
    return hddm_w_step(view(address), x)


@njit(cache=True, nogil=True)
def hddm_w_many(address: float, xs: _Floats, codes: _Codes) -> None:
    """A batch."""
    s = view(address)
    for i in range(len(xs)):
        codes[i] = hddm_w_step(s, xs[i])
