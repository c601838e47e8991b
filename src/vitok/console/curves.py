"""The geometry of charts over time and over numbers: axes whose ends are round, curves, areas and points on them."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from vitok.clock import DAY
from vitok.console.geometry import Band, Dot, Line
from vitok.console.wording import figure, short_day, time

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis from a number to a larger one.

    Attributes:
        low: Where it begins.
        high: Where it ends.
    """

    low: float
    high: float

    @classmethod
    def around(cls, values: Iterable[float], *, zero: bool = False) -> "Axis":
        """Returns an axis with round ends that holds the values; what is not finite is passed over.

        Args:
            values: The values.
            zero: Whether the axis has to hold 0 too.

        Example:
            >>> Axis.around([0.617, 0.643]), Axis.around([3.0, 17.0], zero=True)
            (Axis(low=0.6, high=0.65), Axis(low=0.0, high=20.0))
            >>> Axis.around([])
            Axis(low=0.0, high=1.0)
        """
        finite = [value for value in values if math.isfinite(value)] + ([0.0] if zero else [])
        if not finite or (zero and len(finite) == 1):
            return cls(low=0.0, high=1.0)
        low, high = min(finite), max(finite)
        if low == high:
            # A curve that never moves lies in the middle.
            half = abs(low) / 10 or 0.5
            low, high = low - half, high + half
        power = math.floor(math.log10((high - low) / 2))
        # The middle gets a label of its own, so the way is two steps.
        for step in (factor * 10.0**power for factor in (*_STEPS, 20.0, 25.0, 50.0)):
            start = math.floor(low / step + 1e-9) * step
            if start + 2 * step >= high - 1e-9 * step:
                return cls(low=_plain(start), high=_plain(start + 2 * step))
        raise AssertionError(values)

    @property
    def middle(self) -> float:
        """The value in the middle."""
        return _plain((self.low + self.high) / 2)

    def up(self, value: float) -> float:
        """Returns the height of a value on a vertical axis, from 100 at its foot to 0; beyond the ends, the end."""
        return 100 - self.along(value)

    def along(self, value: float) -> float:
        """Returns the place of a value on a horizontal axis, from 0 to 100; beyond the ends, the end."""
        return 100 * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0) if value == value else math.nan

    def labels(self) -> tuple[str, str, str]:
        """Returns the labels of the top, the middle and the foot."""
        return figure(self.high), figure(self.middle), figure(self.low)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogAxis(Axis):
    """A logarithmic axis; `low` is above 0, and what is smaller lies at its end.

    Example:
        >>> LogAxis(low=1e-4, high=1.0).along(0.01), LogAxis(low=1e-4, high=1.0).along(0.0)
        (50.0, 0.0)
    """

    @property
    def middle(self) -> float:
        """The value in the middle."""
        return _plain(math.sqrt(self.low * self.high))

    def along(self, value: float) -> float:
        """Returns the place of a value on a horizontal axis, from 0 to 100; beyond the ends, the end."""
        if math.isnan(value):
            return math.nan
        at = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return 100 * min(at, 1.0)


def _plain(value: float) -> float:
    return float(f"{value:.12g}")


def line(points: Iterable[tuple[float, float]], tone: str) -> Line:
    """Draws a line through places in [0, 100]; one that is not finite ends a piece."""
    pieces: list[list[str]] = [[]]
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            pieces[-1].append(f"{x:.2f},{y:.2f}")
        elif pieces[-1]:
            pieces.append([])
    return Line(pieces=tuple(" ".join(piece) for piece in pieces if piece), tone=tone)


def bands(points: Iterable[tuple[float, float, float]], tone: str) -> tuple[Band, ...]:
    """Draws the areas between two curves, from (x, upper, lower); a point that is not finite ends an area."""
    runs: list[list[tuple[float, float, float]]] = [[]]
    for point in points:
        if all(map(math.isfinite, point)):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    found = []
    for run in runs:
        # One window alone is still to be seen.
        wide = run if len(run) != 1 else [(run[0][0] - 0.4, *run[0][1:]), (run[0][0] + 0.4, *run[0][1:])]
        corners = [(x, upper) for x, upper, _ in wide] + [(x, lower) for x, _, lower in reversed(wide)]
        if corners:
            found.append(Band(points=" ".join(f"{x:.2f},{y:.2f}" for x, y in corners), tone=tone))
    return tuple(found)


def whiskers(points: Iterable[tuple[float, float, float]], tone: str) -> Line:
    """Draws upright lines from (x, upper, lower)."""
    return Line(
        pieces=tuple(
            f"{x:.2f},{upper:.2f} {x:.2f},{lower:.2f}"
            for x, upper, lower in points
            if math.isfinite(upper) and math.isfinite(lower)
        ),
        tone=tone,
    )


def dots(points: Iterable[tuple[float, float, str, str]]) -> tuple[Dot, ...]:
    """Draws points from (x, y, tone, title); one that is not finite is left out."""
    return tuple(
        Dot(x=x, y=y, tone=tone, title=title) for x, y, tone, title in points if math.isfinite(x) and math.isfinite(y)
    )


def times(moments: Sequence[int]) -> Axis:
    """Returns the axis of some moments; one alone gets a day around it."""
    if not moments:
        return Axis(low=0.0, high=1.0)
    low, high = min(moments), max(moments)
    return Axis(low=float(low), high=float(high)) if high > low else Axis(low=low - DAY / 2, high=low + DAY / 2)


def time_labels(start: int, end: int) -> tuple[str, ...]:
    """Returns the labels of an axis of time: days where it is long, times where it is short."""
    if end - start < 3 * DAY:
        return time(start), time(end)
    return short_day(start), short_day((start + end) // 2), short_day(end)
