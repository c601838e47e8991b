"""What the pages of runs show: a list of them, or some side by side with their metrics over the steps."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitok.console.geometry import Chart, Line
from vitok.console.wording import count, figure
from vitok.registry import MetricHistory, RunComparison, RunList, RunRecord, Tracker, compare

MOST_LISTED = 200
_MOST_CHARTS = 12
_BUCKETS = 240


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunsSeen:
    """The runs of a home.

    Attributes:
        runs: The runs, latest first.
        experiments: Names of all experiments that have runs among the latest.
        experiment: The one that was asked for; empty for all.
        metrics: Names of the metrics that the table shows.
    """

    runs: RunList
    experiments: tuple[str, ...]
    experiment: str
    metrics: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """A metric of several runs, each drawn on the same scale.

    Attributes:
        metric: Name of the metric.
        charts: The run and its chart; runs with fewer than two points are left out.
    """

    metric: str
    charts: tuple[tuple[RunRecord, Chart], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunsBeside:
    """One run, or several side by side.

    Attributes:
        runs: The runs.
        side: The comparison; None of one run.
        drawn: Metrics over steps, at most twelve.
        left_out: How many more metrics there are.
    """

    runs: tuple[RunRecord, ...]
    side: RunComparison | None
    drawn: tuple[Drawn, ...]
    left_out: int


def runs_page(home: Path, experiment: str = "") -> RunsSeen:
    """Lists the latest runs of a home.

    Raises:
        NotFound: If there is no such experiment.
    """
    tracker = Tracker(home)
    found = tracker.runs(most=MOST_LISTED)
    names = tuple(sorted({run.experiment for run in found}))
    chosen = tracker.runs(experiment=experiment, most=MOST_LISTED) if experiment else found
    return RunsSeen(runs=chosen, experiments=names, experiment=experiment, metrics=chosen.metric_names()[:4])


def runs_beside(home: Path, run_ids: Sequence[str]) -> RunsBeside:
    """Reads one run, or several, with their metrics over the steps.

    Args:
        home: The folder with the runs.
        run_ids: 1 to 20 ids, or the first characters of them.

    Raises:
        NotFound: If there is no such run.
        InvalidInput: If there are too many, or one is named twice.
    """
    tracker = Tracker(home)
    runs = tuple(tracker.recorded(run_id) for run_id in run_ids)
    side = compare(runs) if len(runs) != 1 else None
    names = RunList(runs).metric_names()
    drawn = []
    for name in names[:_MOST_CHARTS]:
        found = [(run, tracker.history(run, name)) for run in runs if name in run.metrics]
        courses = [(run, history) for run, history in found if np.isfinite(history.values).sum() > 1]
        if courses:
            charts = drawings([history for _, history in courses])
            drawn.append(Drawn(metric=name, charts=tuple(zip([run for run, _ in courses], charts, strict=True))))
    return RunsBeside(runs=runs, side=side, drawn=tuple(drawn), left_out=max(0, len(names) - _MOST_CHARTS))


def drawings(histories: Sequence[MetricHistory]) -> tuple[Chart, ...]:
    """Draws histories, all on one scale; of many points, the least and the largest of each stretch.

    Args:
        histories: Of one metric, each with a finite value.
    """
    finite = np.concatenate([history.values[np.isfinite(history.values)] for history in histories])
    low, high = float(finite.min()), float(finite.max())
    first = min(int(history.steps[0]) for history in histories)
    last = max(int(history.steps[-1]) for history in histories)
    return tuple(
        Chart(
            title=f"{history.metric}: {count(len(history))} points, {figure(low)} to {figure(high)}",
            lines=(Line(pieces=_pieces(history, low, high, first, last), tone="actual"),),
            y_labels=(figure(high), figure((low + high) / 2), figure(low)),
            x_labels=(f"step {count(first)}", count(last)),
        )
        for history in histories
    )


def _pieces(history: MetricHistory, low: float, high: float, first: int, last: int) -> tuple[str, ...]:
    kept = _thinned(history.values)
    values = history.values[kept]
    x = 100 * (history.steps[kept] - first) / max(1, last - first)
    # A metric that never moves lies in the middle; what is not finite ends a piece.
    y = 100 - 100 * (values - low) / (high - low) if high > low else np.where(np.isfinite(values), 50.0, np.nan)
    pieces: list[list[str]] = [[]]
    for at_x, at_y in zip(x.tolist(), y.tolist(), strict=True):
        if np.isfinite(at_y):
            pieces[-1].append(f"{at_x:.2f},{at_y:.2f}")
        elif pieces[-1]:
            pieces.append([])
    return tuple(" ".join(piece) for piece in pieces if piece)


def _thinned(values: np.ndarray) -> np.ndarray:
    n = len(values)
    if n <= 2 * _BUCKETS:
        return np.arange(n)
    kept = {0, n - 1}
    for places in np.array_split(np.arange(n), _BUCKETS):
        part = values[places]
        odd = np.flatnonzero(~np.isfinite(part))
        # One that is not finite is kept, so that the gap is seen.
        kept |= {int(places[odd[0]])} if len(odd) else set()
        if len(odd) < len(part):
            finite = np.where(np.isfinite(part), part, np.nan)
            kept |= {int(places[np.nanargmin(finite)]), int(places[np.nanargmax(finite)])}
    return np.array(sorted(kept))
