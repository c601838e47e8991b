"""The geometry of charts, as plain numbers; the templates draw it as SVG, so that no page needs a script.

Marks lie in a box of 100 by 100 that is stretched to its place; words stand beside it as text of the page, which
stays legible at every width.
"""

import dataclasses
import math
from collections.abc import Sequence

from vitok.clock import DAY
from vitok.console.alert_reading import AlertSeen
from vitok.console.decision_reading import Tier
from vitok.console.drift_reading import BinShare, DriftCell, DriftRow
from vitok.console.geometry import Chart, Line, Mark
from vitok.console.model_reading import LOWER_IS_BETTER, METRICS, VersionSeen
from vitok.console.reading import ACTIONS, DayOfDecisions
from vitok.console.release_reading import Stretch, told
from vitok.console.wording import count, day, figure, money, share, short_day, time

HEAT = (0.01, 0.025, 0.05, 0.1, 0.25)
_LEAST = 1e-4
_GAP = 0.22


def nice(largest: float) -> float:
    """Returns the end of an axis for values up to `largest`: 1, 2, 4 or 5 times a power of ten.

    Example:
        >>> nice(256), nice(0.034), nice(0)
        (400.0, 0.04, 1.0)
    """
    if not math.isfinite(largest) or largest <= 0:
        return 1.0
    power = math.floor(math.log10(largest))
    for step in (1, 2, 4, 5, 10):
        end = float(f"{step}e{power}")
        if end >= largest * (1 - 1e-12):
            return end
    raise AssertionError(largest)


def actions_by_day(days: Sequence[DayOfDecisions], actions: Sequence[str] = ACTIONS) -> Chart:
    """Draws how many decisions of some actions each day had, one on another."""
    top = nice(max((sum(item.actions.get(action, 0) for action in actions) for item in days), default=0))
    slot = 100 / max(1, len(days))
    marks = []
    for index, item in enumerate(days):
        base = 0.0
        told_day = "; ".join(f"{action} {count(item.actions.get(action, 0))}" for action in actions)
        for action in actions:
            height = 100 * item.actions.get(action, 0) / top
            if height:
                marks.append(
                    Mark(
                        x=(index + _GAP / 2) * slot,
                        y=100 - base - height,
                        width=(1 - _GAP) * slot,
                        height=height,
                        tone=action,
                        title=f"{day(item.day)}: {told_day}",
                    )
                )
            base += height
    return Chart(
        title=f"Decisions by day: {', '.join(actions)}",
        marks=tuple(marks),
        y_labels=(count(top), count(top / 2) if top >= 2 else "", "0"),
        x_labels=_days([item.day for item in days]),
    )


def costs_by_day(days: Sequence[DayOfDecisions]) -> Chart:
    """Draws what the decisions of each day cost, beside what rules would have cost, where outcomes are known."""
    top = nice(max((max(item.cost, item.rules_cost) for item in days), default=0.0))

    def values(rules: bool) -> list[float]:  # noqa: FBT001
        return [(item.rules_cost if rules else item.cost) if item.n_labelled else math.nan for item in days]

    return Chart(
        title="Cost of the decisions of each day, and of what rules would have decided",
        lines=(_line(values(True), top, "rules"), _line(values(False), top, "actual")),
        y_labels=(money(top), money(top / 2), "0"),
        x_labels=_days([item.day for item in days]),
    )


def _line(values: Sequence[float], top: float, tone: str) -> Line:
    pieces: list[list[tuple[float, float]]] = [[]]
    slot = 100 / max(1, len(values))
    for index, value in enumerate(values):
        if math.isnan(value):
            pieces.append([])
        else:
            pieces[-1].append(((index + 0.5) * slot, 100 - 100 * min(max(value / top, 0.0), 1.0)))
    for piece in pieces:
        if len(piece) == 1:
            # One value alone is still to be seen.
            ((x, y),) = piece
            piece[:] = [(x - slot / 5, y), (x + slot / 5, y)]
    written = (" ".join(f"{x:.2f},{y:.2f}" for x, y in piece) for piece in pieces if piece)
    return Line(pieces=tuple(written), tone=tone)


def _days(starts: Sequence[int]) -> tuple[str, ...]:
    if not starts:
        return ()
    if len(starts) < 3:
        return tuple(short_day(start) for start in starts)
    return tuple(short_day(starts[at]) for at in (0, len(starts) // 2, len(starts) - 1))


def heat_level(cell: DriftCell) -> str:
    """Returns the class of a cell of the heat map."""
    if not cell.judged or math.isnan(cell.effect):
        return "few"
    return f"heat{sum(cell.effect >= bound for bound in HEAT)}"


def heat(row: DriftRow) -> Chart:
    """Draws a row of the heat map: a cell a day, and a bar on those that the rule calls drift."""
    slot = 100 / max(1, len(row.cells))
    marks = []
    for index, cell in enumerate(row.cells):
        moved = (
            f"PSI excess {figure(cell.effect)}, shift {figure(cell.shift)}"
            if cell.judged
            else "too few decisions to judge"
        )
        title = f"{row.name}, {day(cell.day)}: {moved}{', drift' if cell.drifted else ''}"
        marks.append(Mark(x=index * slot, y=0, width=0.92 * slot, height=100, tone=heat_level(cell), title=title))
        if cell.drifted:
            marks.append(Mark(x=index * slot, y=80, width=0.92 * slot, height=20, tone="drifted", title=title))
    return Chart(title=f"{row.name}: PSI excess by day", marks=tuple(marks))


def distribution(bins: Sequence[BinShare]) -> Chart:
    """Draws the share of a window in each bin, with the share of the baseline as a line of steps."""
    top = nice(max((max(item.reference, item.current) for item in bins), default=0.0))
    slot = 100 / max(1, len(bins))
    marks, steps = [], []
    for index, item in enumerate(bins):
        height = 100 * item.current / top
        title = f"{item.label}: {share(item.current)} now, {share(item.reference)} in the baseline"
        marks.append(
            Mark(
                x=(index + _GAP / 2) * slot,
                y=100 - height,
                width=(1 - _GAP) * slot,
                height=height,
                tone="current",
                title=title,
            )
        )
        y = 100 - 100 * item.reference / top
        steps += [f"{index * slot:.2f},{y:.2f}", f"{(index + 1) * slot:.2f},{y:.2f}"]
    return Chart(
        title="Share in each bin: the window as bars, the baseline as a line",
        marks=tuple(marks),
        lines=(Line(pieces=(" ".join(steps),), tone="reference"),),
        y_labels=(share(top), share(top / 2), "0 %"),
        x_labels=tuple(dict.fromkeys((bins[0].label, bins[-1].label))) if bins else (),
    )


def place(low: float | None, high: float | None) -> Chart:
    """Draws where a value lies among the reference: from the share below its bin to the share up to its end."""
    if low is None or high is None:
        return Chart(title="no place in the reference")
    width = max(2.0, 100 * (high - low))
    x = min(100 * low, 100 - width)
    return Chart(title="", marks=(Mark(x=x, y=0, width=width, height=100, tone="span"),))


def log_place(probability: float) -> float:
    """Returns where a probability stands on an axis of four powers of ten, in [0, 100].

    Example:
        >>> [log_place(p) for p in (0.0, 0.01, 1.0)]
        [0.0, 50.0, 100.0]
    """
    return 100 * (1 + math.log10(max(probability, _LEAST)) / -math.log10(_LEAST))


def tiers(found: Sequence[Tier], probability: float) -> Chart:
    """Draws the actions of a policy over the probability, on a logarithmic axis, and the decision on it."""
    marks = []
    for tier in found:
        low, high = log_place(tier.low), log_place(tier.high)
        title = f"{tier.action} from {share(tier.low)} to {share(tier.high)}"
        if high > low:
            marks.append(Mark(x=low, y=30, width=high - low, height=40, tone=tier.action, title=title))
    if not math.isnan(probability):
        at = min(log_place(probability), 99.2)
        marks.append(Mark(x=at, y=0, width=0.8, height=100, tone="here", title=f"this decision: {share(probability)}"))
    return Chart(
        title="What the policy does at this amount, by probability of fraud",
        marks=tuple(marks),
        x_labels=("0.01 %", "0.1 %", "1 %", "10 %", "100 %"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lane:
    """A row of a chart of stretches."""

    name: str
    chart: Chart


def lanes(stretches: Sequence[Stretch]) -> tuple[tuple[Lane, ...], tuple[str, ...]]:
    """Draws who answered when: a row for each version, and the labels of the time axis."""
    if not stretches:
        return (), ()
    start, end = min(item.start for item in stretches), max(item.end for item in stretches)
    span = max(1, end - start)
    rows = []
    for name in dict.fromkeys(item.version for item in stretches):
        marks = []
        for item in (item for item in stretches if item.version == name):
            # A stretch of hours among weeks is still to be seen.
            width = max(0.8, 100 * (item.end - item.start) / span)
            x = min(100 * (item.start - start) / span, 100 - width)
            marks.append(Mark(x=x, y=0, width=width, height=100, tone=item.kind, title=told(item)))
        rows.append(Lane(name=name, chart=Chart(title="; ".join(mark.title for mark in marks), marks=tuple(marks))))
    middle = start + span // 2
    if span < 3 * DAY:
        return tuple(rows), (time(start), time(end))
    return tuple(rows), (short_day(start), short_day(middle), short_day(end))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whisker:
    """A value with its interval on the axis of its metric."""

    name: str
    label: str
    low: float
    at: float
    high: float
    serves: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricPlot:
    """One metric of all versions.

    Attributes:
        name: Name of the metric.
        direction: Which way is better, in words.
        definition: How it is computed.
        whiskers: One for each version that has it.
        x_labels: Ends of the axis.
    """

    name: str
    direction: str
    definition: str
    whiskers: tuple[Whisker, ...]
    x_labels: tuple[str, ...]


def metric_plots(versions: Sequence[VersionSeen], names: Sequence[str] = METRICS) -> tuple[MetricPlot, ...]:
    """Draws each metric of all versions with its intervals."""
    plots = []
    for name in names:
        rows = [(item, item.metrics[name]) for item in versions if name in item.metrics]
        rows = [(item, estimate) for item, estimate in rows if math.isfinite(estimate.value)]
        if not rows:
            continue
        ends = [end for _, found in rows for end in (found.lower, found.value, found.upper) if math.isfinite(end)]
        top = nice(max(ends)) if max(ends) > 1 or name in LOWER_IS_BETTER else 1.0

        def at(value: float, default: float, top: float = top) -> float:
            return 100 * min(max(value / top, 0.0), 1.0) if math.isfinite(value) else default

        plots.append(
            MetricPlot(
                name=name,
                direction="lower is better" if name in LOWER_IS_BETTER else "higher is better",
                definition=rows[0][1].definition,
                whiskers=tuple(
                    Whisker(
                        name=item.version.name,
                        label=figure(found.value),
                        low=at(found.lower, 0.0),
                        at=at(found.value, 0.0),
                        high=at(found.upper, 100.0),
                        serves=item.role == "serves",
                    )
                    for item, found in rows
                ),
                x_labels=("0", figure(top / 2), figure(top)),
            )
        )
    return tuple(plots)


def course(seen: AlertSeen) -> Chart | None:
    """Draws what a rule measured by window, with its bound; None where there are fewer than two numbers."""
    items = [item for item in seen.observations if math.isfinite(item.value)]
    if len(items) < 2:
        return None
    bounds = [item.bound for item in items]
    top = nice(max(max(item.value for item in items), max((b for b in bounds if math.isfinite(b)), default=0.0)))
    slot = 100 / len(items)
    fired = tuple(
        Mark(
            x=index * slot,
            y=0,
            # A little wider than its place, so that no seam shows between two.
            width=min(1.02 * slot, 100 - index * slot),
            height=100,
            tone="fired",
            title=f"{day(item.window_end)}: {figure(item.value)} against {figure(item.bound)}",
        )
        for index, item in enumerate(items)
        if item.firing
    )
    return Chart(
        title=f"{seen.alert.rule} of {seen.alert.version} by window, with its bound",
        marks=fired,
        lines=(
            _line(bounds, top, "bound"),
            _line([item.value for item in items], top, "actual"),
        ),
        y_labels=(figure(top), "0"),
        x_labels=_days([item.window_end for item in items]),
    )
