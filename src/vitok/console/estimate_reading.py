"""What was estimated before the labels were in, beside what they said later, and whether the next one is trusted."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitok.console import curves, stores
from vitok.console.geometry import Chart
from vitok.console.wording import day, figure, interval, share
from vitok.errors import NotFound
from vitok.monitoring import EstimateGrade
from vitok.monitoring.estimate_ledger import EstimatePair
from vitok.systems.fraud.messages import SYSTEM

WINDOWS = 400
_MOST_GRADED = 12
# What a reader looks for first, where it was estimated.
_FIRST = ("average_precision", "roc_auc", "auc", "precision", "recall", "cost", "brier")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimatesSeen:
    """The estimates of one metric of one subject, beside what came true.

    Attributes:
        subjects: What there are estimates of, with their metrics.
        subject: The one that is shown, such as `"fraud/2"`; None where there is none.
        metric: Which metric.
        pairs: The latest windows, at most `WINDOWS`, oldest first.
        n_windows: Windows on record.
        grade: How good the estimates of those windows were; None where there is nothing.
        grades: The grades of the subject's metrics, this one among them, at most twelve.
        left_out: How many more metrics it has.
    """

    subjects: Mapping[str, tuple[str, ...]]
    subject: str | None
    metric: str | None
    pairs: tuple[EstimatePair, ...]
    n_windows: int
    grade: EstimateGrade | None
    grades: tuple[EstimateGrade, ...]
    left_out: int

    @property
    def realised(self) -> int:
        """Windows that have a realised value."""
        return sum(pair.realised is not None for pair in self.pairs)

    def __str__(self) -> str:
        if self.grade is None:
            return "nothing was estimated yet"
        return "\n".join([str(self.grade), *(f"  {pair}" for pair in self.pairs)])


def estimates(home: Path, subject: str | None = None, metric: str | None = None) -> EstimatesSeen:
    """Reads estimates and what labels said of them.

    Args:
        home: Folder of everything vitok writes.
        subject: Of what; by default the version that serves, else the last by name.
        metric: Which metric; by default one that is looked for first.

    Raises:
        NotFound: If there are no estimates of that subject or metric.
    """
    with stores.estimates(home) as ledger:
        subjects = {} if ledger is None else ledger.subjects()
        if subject is not None and subject not in subjects:
            raise NotFound("estimates", subject, subjects)
        if ledger is None or not subjects:
            return EstimatesSeen(
                subjects={}, subject=None, metric=None, pairs=(), n_windows=0, grade=None, grades=(), left_out=0
            )
        serving = f"{SYSTEM}/{stores.state(home).production}"
        chosen = subject or (serving if serving in subjects else list(subjects)[-1])
        metrics = subjects[chosen]
        if metric is not None and metric not in metrics:
            raise NotFound("metric", metric, metrics)
        shown = metric or next((name for name in _FIRST if name in metrics), metrics[0])
        pairs = ledger.pairs(chosen, shown)
        graded = [shown, *(name for name in metrics if name != shown)][:_MOST_GRADED]
        grades = {name: ledger.grade(chosen, name, last=WINDOWS) for name in graded}
    return EstimatesSeen(
        subjects=subjects,
        subject=chosen,
        metric=shown,
        pairs=pairs[-WINDOWS:],
        n_windows=len(pairs),
        grade=grades[shown],
        grades=tuple(grades[name] for name in metrics if name in grades),
        left_out=max(0, len(metrics) - _MOST_GRADED),
    )


def estimates_drawn(pairs: Sequence[EstimatePair], name: str) -> Chart:
    """Draws estimates as a line with their intervals as a band, and realised values as points with theirs."""
    known = [(pair, pair.realised) for pair in pairs if pair.realised is not None]
    ends = [end for pair in pairs for end in (pair.estimated.lower, pair.estimated.value, pair.estimated.upper)]
    ends += [end for _, realised in known for end in (realised.lower, realised.value, realised.upper)]
    axis = curves.Axis.around(ends)
    over = curves.times([(pair.start + pair.end) // 2 for pair in pairs])

    def at(pair: EstimatePair) -> float:
        return over.along((pair.start + pair.end) / 2)

    return Chart(
        title=f"{name}: estimated with its interval as a line, realised as points",
        bands=curves.bands(
            ((at(pair), axis.up(pair.estimated.upper), axis.up(pair.estimated.lower)) for pair in pairs), "actual"
        ),
        lines=(
            curves.line(((at(pair), axis.up(pair.estimated.value)) for pair in pairs), "actual"),
            curves.whiskers(
                ((at(pair), axis.up(realised.upper), axis.up(realised.lower)) for pair, realised in known), "whisker"
            ),
        ),
        dots=curves.dots(
            (
                at(pair),
                axis.up(realised.value),
                "inside" if pair.covered else "outside",
                f"{day(pair.start)}: realised {figure(realised.value)} from {share(pair.labelled)} of the labels, "
                f"estimated {figure(pair.estimated.value)} "
                f"({interval(pair.estimated.lower, pair.estimated.upper)})",
            )
            for pair, realised in known
        ),
        y_labels=axis.labels(),
        x_labels=curves.time_labels(round(over.low), round(over.high)) if pairs else (),
    )
