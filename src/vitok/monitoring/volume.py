"""How many decisions are to be expected in an hour of the week, and whether there were too few of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vitok.clock import DAY, HOUR
from vitok.errors import InvalidInput
from vitok.stats.results import Result

_WEEK_HOURS = 168


@dataclass(frozen=True, kw_only=True)
class VolumeCheck(Result):
    """Decisions of a window against what was expected of its hours.

    Attributes:
        n: Decisions.
        expected: What was expected.
        lower: Fewest that are still ordinary at the level of the check.
        p_value: Chance of at most `n`.
    """

    n: int
    expected: float
    lower: int
    p_value: float

    @property
    def is_low(self) -> bool:
        """Whether there were too few."""
        return self.n < self.lower

    def __str__(self) -> str:
        return f"{self.n:,} decisions where {self.expected:,.0f} were expected, at least {self.lower:,}"


@dataclass(frozen=True, kw_only=True)
class ExpectedVolume:
    """Decisions by hour of the week, with how much hours and days vary around it.

    The law of a window is a negative binomial: decisions are Poisson around a level that itself varies, from hour to
    hour and from day to day, and is known from a few weeks only.

    Attributes:
        mean: Shape (168,), decisions an hour, from Thursday 1 January 1970, 00:00 UTC, on.
        by_hour: Squared relative variation of the level from hour to hour.
        by_day: The same from day to day.
        weeks: Weeks it was learned from.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> level = 100 + 50 * np.sin(np.arange(168) / 24 * 2 * np.pi)
        >>> past = {hour * HOUR: int(rng.poisson(level[hour % 168])) for hour in range(4 * 168)}
        >>> expected = ExpectedVolume.fit(past)
        >>> day = 28 * DAY
        >>> expected.check(2_380, day, day + DAY).is_low, expected.check(1_500, day, day + DAY).is_low
        (False, True)
        >>> expected.check(0, day, day + HOUR).is_low
        True
    """

    mean: tuple[float, ...]
    by_hour: float
    by_day: float
    weeks: float

    @classmethod
    def fit(cls, volumes: Mapping[int, int]) -> "ExpectedVolume":
        """Learns from the hours of the past.

        Args:
            volumes: Beginning of each hour, in microseconds, to its decisions, 0 included; a week of them or more.
                Hours of an outage teach that outages are ordinary: leave them out.

        Raises:
            InvalidInput: If there is less than a week of hours.
        """
        if len(volumes) < _WEEK_HOURS:
            raise InvalidInput("volumes", len(volumes), f"hold at least {_WEEK_HOURS} hours, a week")
        starts = np.array(list(volumes), dtype=np.int64)
        n = np.array(list(volumes.values()), dtype=np.float64)
        at = starts // HOUR % _WEEK_HOURS
        seen = np.bincount(at, minlength=_WEEK_HOURS)
        total = np.bincount(at, weights=n, minlength=_WEEK_HOURS)
        # An hour that was never seen has the level of all.
        mean = np.where(seen > 0, total / np.maximum(seen, 1), n.mean())
        weeks = len(volumes) / _WEEK_HOURS
        days, day_at = np.unique(starts // DAY, return_inverse=True)
        day_n = np.bincount(day_at, weights=n, minlength=len(days))
        day_mean = np.bincount(day_at, weights=mean[at], minlength=len(days))
        # With w weeks a mean takes up a share 1/w of the variation; with one week nothing is left to measure.
        left = max(1 - 1 / weeks, 0.0)
        by_hour = _variation(n, mean[at], left)
        by_day = _variation(day_n, day_mean, left)
        if left < 0.4:
            # Too short to tell; a tenth from day to day is what is usual.
            by_hour, by_day = max(by_hour, 0.01), max(by_day, 0.01)
        return cls(mean=tuple(mean.tolist()), by_hour=by_hour, by_day=by_day, weeks=weeks)

    def expected(self, start: int, end: int) -> float:
        """Returns the expected decisions of `[start, end)`, full hours in microseconds."""
        return float(np.array(self.mean)[np.arange(start // HOUR, end // HOUR) % _WEEK_HOURS].sum())

    def check(self, n: int, start: int, end: int, *, level: float = 1e-4) -> VolumeCheck:
        """Judges the decisions of a window.

        Args:
            n: How many there were.
            start: When the window begins, a full hour in microseconds.
            end: When it ends.
            level: Chance of a false alarm in a window.
        """
        means = np.array(self.mean)[np.arange(start // HOUR, end // HOUR) % _WEEK_HOURS]
        mean = float(means.sum())
        if mean <= 0:
            return VolumeCheck(n=n, expected=0.0, lower=0, p_value=1.0)
        variation = self.by_day + self.by_hour * float((means**2).sum()) / mean**2
        # The level is known from these weeks only.
        variation = variation * (1 + 1 / self.weeks) + 1 / (self.weeks * mean)
        low, high = 0, max(1, math.ceil(mean))
        while low < high:
            middle = (low + high) // 2
            if _at_most(middle, mean, variation) >= level:
                high = middle
            else:
                low = middle + 1
        return VolumeCheck(n=n, expected=mean, lower=low, p_value=_at_most(n, mean, variation))


def _variation(n: np.ndarray, mean: np.ndarray, left: float) -> float:
    squares = float((mean**2).sum())
    if squares <= 0 or left <= 0:
        return 0.0
    return max(0.0, (float(((n - mean) ** 2).sum()) / left - float(mean.sum())) / squares)


def _at_most(n: int, mean: float, variation: float) -> float:
    """Returns the chance of at most n under a negative binomial of variance mean + variation * mean squared."""
    from scipy.special import betainc, pdtr

    if variation < 1e-9:
        return float(pdtr(n, mean))
    size = 1 / variation
    return float(betainc(size, n + 1, size / (size + mean)))
