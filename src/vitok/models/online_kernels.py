"""The loops of online learning: FTRL-Proximal, hashed rows, and what progressive validation counts.

The state of a model is one array of shape (slots, 2): z and n of Algorithm 1 side by side, so that a coordinate is one
look into memory.
"""

import math

import numpy as np
from numba import njit, uint64

_LARGEST_MARGIN = 500.0
LARGEST = 1e75
"""Of a value, and of a row's weight: the square of their product is a number, which is added up."""


@njit(cache=True, inline="always")
def _weight(z: float, n: float, alpha: float, beta: float, l1: float, l2: float) -> float:
    if abs(z) <= l1:
        return 0.0
    return -(z - math.copysign(l1, z)) / ((beta + math.sqrt(n)) / alpha + l2)


@njit(cache=True, inline="always")
def _probability(margin: float) -> float:
    return 1.0 / (1.0 + math.exp(-min(max(margin, -_LARGEST_MARGIN), _LARGEST_MARGIN)))


@njit(cache=True, inline="always")
def _learn(
    state: np.ndarray,
    rates: np.ndarray,
    slots: np.ndarray,
    values: np.ndarray,
    scratch: np.ndarray,
    label: float,
    weight: float,
) -> float:
    alpha, beta, l1, l2 = rates[0], rates[1], rates[2], rates[3]
    margin = 0.0
    for j in range(slots.shape[0]):
        slot = slots[j]
        w = _weight(state[slot, 0], state[slot, 1], alpha, beta, l1, l2)
        scratch[j] = w
        margin += w * values[j]
    p = _probability(margin)
    step = weight * (p - label)
    for j in range(slots.shape[0]):
        slot = slots[j]
        g = step * values[j]
        n = state[slot, 1]
        more = n + g * g
        sigma = (math.sqrt(more) - math.sqrt(n)) / alpha
        state[slot, 0] += g - sigma * scratch[j]
        state[slot, 1] = more
    return p


@njit(cache=True, inline="always")
def _fits(slots: np.ndarray, values: np.ndarray, size: int) -> bool:
    good = True
    for j in range(slots.shape[0]):
        good &= slots[j] < size and abs(values[j]) <= LARGEST
    return good


@njit(cache=True)
def first_bad(slots: np.ndarray, values: np.ndarray, size: int) -> int:
    """Returns the first row with a slot that there is none of, or a value beyond `LARGEST`; -1 where none is."""
    for i in range(slots.shape[0]):
        if not _fits(slots[i], values[i], size):
            return i
    return -1


@njit(cache=True)
def learn_many(
    state: np.ndarray,
    rates: np.ndarray,
    slots: np.ndarray,
    values: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    scratch: np.ndarray,
    out: np.ndarray,
) -> None:
    """Predicts each row, writes that to `out`, and learns it, one row after another."""
    for i in range(slots.shape[0]):
        out[i] = _learn(state, rates, slots[i], values[i], scratch, labels[i], weights[i])


@njit(cache=True)
def learn_one(
    state: np.ndarray,
    rates: np.ndarray,
    slots: np.ndarray,
    values: np.ndarray,
    scratch: np.ndarray,
    label: float,
    weight: float,
) -> float:
    """Predicts and learns one row; gives -1, and learns nothing, where `first_bad` would find it bad."""
    if not _fits(slots, values, state.shape[0]):
        return -1.0
    return _learn(state, rates, slots, values, scratch, label, weight)


@njit(cache=True)
def predict(state: np.ndarray, rates: np.ndarray, slots: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
    """Writes the probability of each row to `out`."""
    alpha, beta, l1, l2 = rates[0], rates[1], rates[2], rates[3]
    for i in range(slots.shape[0]):
        margin = 0.0
        for j in range(slots.shape[1]):
            slot = slots[i, j]
            margin += _weight(state[slot, 0], state[slot, 1], alpha, beta, l1, l2) * values[i, j]
        out[i] = _probability(margin)


@njit(cache=True)
def uncertainty(state: np.ndarray, rates: np.ndarray, slots: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
    """Writes the sum of the squared values times their learning rates to `out`."""
    for i in range(slots.shape[0]):
        total = 0.0
        for j in range(slots.shape[1]):
            rate = 1.0 / ((rates[1] + math.sqrt(state[slots[i, j], 1])) / rates[0] + rates[3])
            total += values[i, j] * values[i, j] * rate
        out[i] = total


@njit(cache=True)
def correct(state: np.ndarray, slots: np.ndarray, values: np.ndarray, by: np.ndarray) -> None:
    """Adds to the gradients of rows that were learned what another label would have added; rates stay."""
    for i in range(slots.shape[0]):
        for j in range(slots.shape[1]):
            state[slots[i, j], 0] += by[i] * values[i, j]


@njit(cache=True)
def weights_of(state: np.ndarray, rates: np.ndarray, out: np.ndarray) -> None:
    """Writes the weight of every slot to `out`."""
    for i in range(state.shape[0]):
        out[i] = _weight(state[i, 0], state[i, 1], rates[0], rates[1], rates[2], rates[3])


@njit(cache=True)
def put_weights(state: np.ndarray, rates: np.ndarray, slots: np.ndarray, weights: np.ndarray) -> None:
    """Chooses z so that slots have these weights at the n that they have."""
    for i in range(slots.shape[0]):
        slot, w = slots[i], weights[i]
        if w == 0.0:
            state[slot, 0] = min(max(state[slot, 0], -rates[2]), rates[2])
        else:
            scale = (rates[1] + math.sqrt(state[slot, 1])) / rates[0] + rates[3]
            state[slot, 0] = -w * scale - math.copysign(rates[2], w)


@njit(cache=True, inline="always")
def _mixed(x: int) -> int:
    # The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
    x = uint64(x)
    x = (x ^ (x >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> uint64(27))) * uint64(0x94D049BB133111EB)
    return x ^ (x >> uint64(31))


_MISSING = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True)
def hash_rows(
    texts: np.ndarray,
    numbers: np.ndarray,
    buckets: np.ndarray,
    seeds: np.ndarray,
    parts: np.ndarray,
    ends: np.ndarray,
    bits: int,
    constant: int,
    slots: np.ndarray,
    values: np.ndarray,
) -> None:
    """Writes the slots and values of rows.

    Args:
        texts: Fingerprints by category, shape (categories, n), uint64; 0 where there is no value.
        numbers: Standardised, shape (numbers, n); NaN where there is no value.
        buckets: Shape (bucketed, n), int64 from 0; -1 where there is no value.
        seeds: One a feature: categories, bucketed, numbers, crosses, the constant.
        parts: Of the crosses, one after another: places among categories and bucketed.
        ends: Where each cross ends in `parts`.
        bits: Slots are 2**bits.
        constant: 1 where the last column is the constant, else 0.
        slots: Shape (n, features), uint32.
        values: Shape (n, features), float64.
    """
    n = slots.shape[0]
    n_texts, n_buckets, n_numbers, n_crosses = texts.shape[0], buckets.shape[0], numbers.shape[0], ends.shape[0]
    shift = uint64(64 - bits)
    tokens = np.empty(n_texts + n_buckets, np.uint64)
    seen = np.full(1024, -1, np.int64)
    for i in range(n):
        at = 0
        for j in range(n_texts):
            token = texts[j, i]
            if token == uint64(0):
                token = _MISSING
            tokens[at] = _mixed(seeds[at] ^ token)
            at += 1
        for j in range(n_buckets):
            token = _MISSING if buckets[j, i] < 0 else _mixed(uint64(buckets[j, i] + 1))
            tokens[at] = _mixed(seeds[at] ^ token)
            at += 1
        for j in range(at):
            slots[i, j] = tokens[j] >> shift
            values[i, j] = 1.0
        for j in range(n_numbers):
            x = numbers[j, i]
            if math.isnan(x):
                slots[i, at] = _mixed(seeds[at] ^ _MISSING) >> shift
                values[i, at] = 1.0
            else:
                slots[i, at] = _mixed(seeds[at]) >> shift
                values[i, at] = x
            at += 1
        start = 0
        for j in range(n_crosses):
            token = seeds[at]
            for k in range(start, ends[j]):
                token = _mixed(token ^ tokens[parts[k]])
            start = ends[j]
            slots[i, at] = token >> shift
            values[i, at] = 1.0
            at += 1
        if constant == 1:
            slots[i, at] = _mixed(seeds[at]) >> shift
            values[i, at] = 1.0
            at += 1
        _add_up(slots[i], values[i], seen)


@njit(cache=True)
def bucket_tokens(seeds: np.ndarray, starts: np.ndarray, out: np.ndarray) -> None:
    """Writes the token of every bucket: of each feature first that of no value, then those of its buckets.

    Args:
        seeds: One a bucketed feature, uint64.
        starts: Where each one's tokens begin, and last where they all end, int64.
        out: Shape (starts[-1],), uint64.
    """
    for j in range(seeds.shape[0]):
        for k in range(starts[j], starts[j + 1]):
            b = k - starts[j]
            out[k] = _mixed(seeds[j] ^ (_MISSING if b == 0 else _mixed(uint64(b))))


@njit(cache=True)
def number_tokens(seeds: np.ndarray, out: np.ndarray) -> None:
    """Writes the tokens of each number without a value and with one, to `out` of shape (numbers, 2), uint64."""
    for j in range(seeds.shape[0]):
        out[j, 0] = _mixed(seeds[j] ^ _MISSING)
        out[j, 1] = _mixed(seeds[j])


@njit(cache=True)
def score_matrix(
    state: np.ndarray,
    rates: np.ndarray,
    X: np.ndarray,
    places: np.ndarray,
    edges: np.ndarray,
    edge_starts: np.ndarray,
    bucketed: np.ndarray,
    standards: np.ndarray,
    numbered: np.ndarray,
    seeds: np.ndarray,
    parts: np.ndarray,
    ends: np.ndarray,
    bits: int,
    constant: int,
    out: np.ndarray,
) -> None:
    """Writes the probability of each row of a matrix to `out`, as `hash_rows` and `predict` would give it.

    Args:
        state: z and n of each slot.
        rates: As `predict` takes them.
        X: Shape (n, columns), float64; NaN where there is no value.
        places: Columns of the bucketed features, then of the numbers, int64.
        edges: Of the bucketed features, one after another.
        edge_starts: Where each one's edges begin, and last where they all end.
        bucketed: What `bucket_tokens` gave.
        standards: Centre, scale and limit of each number, shape (numbers, 3).
        numbered: What `number_tokens` gave.
        seeds: Of the crosses, and last of the constant.
        parts: Of the crosses, one after another: places among the bucketed.
        ends: Where each cross ends in `parts`.
        bits: Slots are 2**bits.
        constant: 1 where there is a constant, else 0.
        out: Shape (n,).
    """
    n_buckets, n_numbers, n_crosses = edge_starts.shape[0] - 1, standards.shape[0], ends.shape[0]
    shift = uint64(64 - bits)
    alpha, beta, l1, l2 = rates[0], rates[1], rates[2], rates[3]
    width = n_buckets + n_numbers + n_crosses + constant
    slots, values = np.empty(width, np.uint32), np.empty(width)
    tokens = np.empty(n_buckets, np.uint64)
    seen = np.full(1024, -1, np.int64)
    for i in range(X.shape[0]):
        for j in range(n_buckets):
            x = X[i, places[j]]
            first, last = edge_starts[j], edge_starts[j + 1]
            at = 0
            if not math.isnan(x):
                low, high = first, last
                while low < high:
                    middle = (low + high) >> 1
                    if edges[middle] <= x:
                        low = middle + 1
                    else:
                        high = middle
                at = low - first + 1
            # Each feature has two more tokens than edges.
            tokens[j] = bucketed[first + 2 * j + at]
            slots[j] = tokens[j] >> shift
            values[j] = 1.0
        at = n_buckets
        for j in range(n_numbers):
            x = X[i, places[n_buckets + j]]
            if math.isnan(x):
                slots[at] = numbered[j, 0] >> shift
                values[at] = 1.0
            else:
                limit = standards[j, 2]
                slots[at] = numbered[j, 1] >> shift
                values[at] = min(max((x - standards[j, 0]) / standards[j, 1], -limit), limit)
            at += 1
        start = 0
        for j in range(n_crosses):
            token = seeds[j]
            for k in range(start, ends[j]):
                token = _mixed(token ^ tokens[parts[k]])
            start = ends[j]
            slots[at] = token >> shift
            values[at] = 1.0
            at += 1
        if constant == 1:
            slots[at] = _mixed(seeds[n_crosses]) >> shift
            values[at] = 1.0
        _add_up(slots, values, seen)
        margin = 0.0
        for j in range(width):
            slot = slots[j]
            margin += _weight(state[slot, 0], state[slot, 1], alpha, beta, l1, l2) * values[j]
        out[i] = _probability(margin)


@njit(cache=True)
def _add_up(slots: np.ndarray, values: np.ndarray, seen: np.ndarray) -> None:
    # Features that share a slot are one coordinate: the first gets the sum, the others 0. `seen` is a small table by
    # the low bits, which says for most that nobody was there before.
    k = slots.shape[0]
    for j in range(k):
        low = slots[j] & np.uint32(1023)
        if seen[low] >= 0:
            for i in range(j):
                if slots[i] == slots[j]:
                    values[i] += values[j]
                    values[j] = 0.0
                    break
        else:
            seen[low] = j
    for j in range(k):
        seen[slots[j] & np.uint32(1023)] = -1


@njit(cache=True)
def count_progress(
    counts: np.ndarray,
    sums: np.ndarray,
    gains: np.ndarray,
    growth: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    slices: np.ndarray,
    span: float,
) -> None:
    """Counts predictions in decayed windows; instead of all that was counted, what is new grows.

    Args:
        counts: Weight of the negatives, of the positives, and weight times probability, by window, slice and bin of
            the log odds, shape (windows, slices, 3, bins).
        sums: Sums of weight times loss, probability, label and 1, of squared weights, and the number of rows, shape
            (windows, slices, 6).
        gains: What a row of weight 1 adds, shape (windows,).
        growth: Factor from one row to the next, shape (windows,), at least 1.
        probabilities: Shape (n,).
        labels: Shape (n,), 0 or 1.
        weights: Shape (n,).
        slices: Place of the row's slice, shape (n,); slice 0 is all of them.
        span: Log odds beyond which a row goes into the outermost bin.
    """
    n_windows, n_bins = counts.shape[0], counts.shape[3]
    for i in range(probabilities.shape[0]):
        p = min(max(probabilities[i], 1e-15), 1.0 - 1e-15)
        y = labels[i]
        odds = math.log(p) - math.log1p(-p)
        loss = -math.log(p) if y == 1.0 else -math.log1p(-p)
        place = int((odds + span) * (n_bins / (2.0 * span)))
        place = min(max(place, 0), n_bins - 1)
        for k in range(n_windows):
            gain = gains[k] * growth[k]
            if gain > 1e100:
                counts[k] /= gain
                sums[k, :, :4] /= gain
                sums[k, :, 4] /= gain * gain
                gain = 1.0
            gains[k] = gain
            amount = gain * weights[i]
            for s in (0, slices[i]):
                counts[k, s, int(y), place] += amount
                counts[k, s, 2, place] += amount * p
                sums[k, s, 0] += amount * loss
                sums[k, s, 1] += amount * p
                sums[k, s, 2] += amount * y
                sums[k, s, 3] += amount
                sums[k, s, 4] += amount * amount
                sums[k, s, 5] += 1.0
                if slices[i] == 0:
                    break
