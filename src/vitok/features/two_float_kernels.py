"""Arithmetic of numbers held in two floats, to about 106 bits: sums stay right however long a history is.

Sources: Dekker, "A floating-point technique for extending the available precision" (1971); Knuth, TAOCP volume 2,
section 4.2.2.
"""

import numpy as np
from numba import njit

_SPLIT = 134217729.0  # 2^27 + 1


@njit(cache=True, inline="always")
def add_two(high: float, low: float, other_high: float, other_low: float) -> tuple[float, float]:
    """Returns the sum of two pairs."""
    total = high + other_high
    part = total - high
    error = (high - (total - part)) + (other_high - part) + (low + other_low)
    out = total + error
    return out, error - (out - total)


@njit(cache=True, inline="always")
def square_two(high: float, low: float) -> tuple[float, float]:
    """Returns the square of a pair."""
    product = high * high
    scaled = _SPLIT * high
    top = scaled - (scaled - high)
    rest = high - top
    error = ((top * top - product) + 2.0 * top * rest) + rest * rest + 2.0 * high * low
    out = product + error
    return out, error - (out - product)


@njit(cache=True, inline="always")
def divide_two(high: float, low: float, by: float) -> tuple[float, float]:
    """Returns a pair divided by a float."""
    quotient = high / by
    product = quotient * by
    scaled, scaled_by = _SPLIT * quotient, _SPLIT * by
    a, b = scaled - (scaled - quotient), scaled_by - (scaled_by - by)
    c, d = quotient - a, by - b
    error = ((a * b - product) + a * d + c * b) + c * d
    rest = ((high - product) - error + low) / by
    out = quotient + rest
    return out, rest - (out - quotient)


@njit(cache=True, inline="always")
def difference_two(value: float, centre: float) -> tuple[float, float]:
    """Returns value - centre as a pair."""
    out = value - centre
    part = out - value
    return out, (value - (out - part)) - (centre + part)


@njit(cache=True)
def deviation(n: float, s_high: float, s_low: float, q_high: float, q_low: float, size: float) -> float:
    """Returns the standard deviation of a sample.

    Args:
        n: How many values.
        s_high: Their sum, less n times the centre.
        s_low: The rest of it.
        q_high: The sum of squares of their distances from the centre.
        q_low: The rest of it.
        size: The largest sum of squares of which this one is a difference.
    """
    if n < 2:
        return np.nan
    high, low = square_two(s_high, s_low)
    high, low = divide_two(high, low, n)
    high, low = add_two(q_high, q_low, -high, -low)
    # Of values that are all equal nothing is left but the rounding of what was added up.
    if high <= (size + q_high) * 1e-29:
        return 0.0
    return np.sqrt(high / (n - 1.0))
