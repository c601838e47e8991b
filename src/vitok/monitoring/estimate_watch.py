"""Performance of each closed day before its labels are in, written down, and held against what they say later."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitok.decisions import label_weights
from vitok.decisions.schema import FEATURE_PREFIX
from vitok.errors import Conflict, MissingExtra
from vitok.monitoring.estimate_ledger import EstimateLedger, EstimatePair
from vitok.monitoring.estimation import PerformanceEstimator, estimate_under_shift
from vitok.monitoring.performance import Performance
from vitok.policies import Costs
from vitok.stats import Estimate

if TYPE_CHECKING:
    import polars as pl

METRICS = ("positive_rate", "roc_auc", "average_precision", "brier", "cost")
"""What is estimated, by the names under which `EstimateLedger` keeps it."""
UNDER_SHIFT = "_under_shift"
"""What stands behind the name of a metric where the labelled rows were weighed to look like the day."""
_SHIFTED = tuple(metric + UNDER_SHIFT for metric in METRICS)
# The classifier that weighs them is fitted to so many labelled rows at most, and needs so many at least.
_MOST, _FEWEST, _FEWEST_POSITIVES = 20_000, 300, 10
_WORTH_TELLING = ("average_precision", "cost")
_TIMES_AS_WIDE = 4.0
"""An interval so many times as wide as the baseline's rests on a sixteenth of its rows: it decides nothing."""
_BY_BASELINE = {"roc_auc": "auc", "positive_rate": "fraud_rate", "cost": "cost_per_decision"}


class EstimateWatch:
    """Estimates days without labels and realises them once the labels are in; `Watch` has one.

    Args:
        ledger: Where both are kept.
        estimator_of: Gives the estimator of a version, None for one without.
        costs: What actions cost; None leaves cost out.
        amount: Column with the amount.
        featured: Gives the decisions with `start <= event_time < end` with all their features, joined with the labels
            known as of a time, null where none was: called as `featured(start, end, as_of)`, and only where a day
            drifted. None leaves out estimates under shift.
        hiding: Actions after which no outcome can be seen; see `performance`.
    """

    def __init__(
        self,
        ledger: EstimateLedger,
        *,
        estimator_of: Callable[[str], PerformanceEstimator | None],
        costs: Costs | None = None,
        amount: str = "amount",
        featured: "Callable[[int, int, int], pl.DataFrame] | None" = None,
        hiding: Collection[str] = (),
    ) -> None:
        self.ledger = ledger
        self._featured = featured
        self._hiding = hiding
        self._estimator_of = estimator_of
        self._costs = costs
        self._amount = amount

    def estimate(
        self, version: str, rows: "pl.DataFrame", start: int, end: int, *, made_at: int
    ) -> tuple[Estimate, ...]:
        """Estimates one day of one version and writes it down; what was said of it before stands.

        Args:
            version: Which version.
            rows: Its decisions of the day: `probability`, and `action` and the amount where costs are given.
            start: When the day begins, in microseconds.
            end: When it ends.
            made_at: The present, in microseconds.

        Returns:
            The estimates; empty where the version has no estimator or no row has a probability.
        """
        estimator = self._estimator_of(version)
        given = self._answered(rows)
        if estimator is None or not given.height:
            return ()
        probability, costs = self._forecast(given)
        expected = estimator.estimate(probability, forecast=probability, **costs)
        return self._written(version, [one for one in expected.estimates if one.name in METRICS], start, end, made_at)

    def estimate_under_shift(
        self,
        version: str,
        features: Sequence[str],
        start: int,
        end: int,
        *,
        known: tuple[int, int],
        made_at: int,
    ) -> tuple[Estimate, ...]:
        """Estimates a day that drifted from labelled rows weighed to look like it, and writes it down.

        Rows are read, and a classifier is fitted to at most 20,000 labelled ones and as many of the day: seconds, for
        a day that drifted only.

        Args:
            version: Which version.
            features: What the mix of rows is told by; leave out what differs from day to day for no other reason
                than the calendar.
            start: When the day begins, in microseconds.
            end: When it ends.
            known: Beginning and end of the span whose labelled decisions of this version stand for the past.
            made_at: The present, in microseconds.

        Returns:
            The estimates by their own names, such as `"average_precision_under_shift"`. Where hardly any labelled row
            looks like the day, one of them without a value, whose definition says so. Empty where there are too few
            labels, rows with features are not given, or LightGBM, which weighs them, is not there: watching goes on.
        """
        if self._featured is None:
            return ()
        now = self._answered(_of(version, self._featured(start, end, end)))
        before = self._known(_of(version, self._featured(*known, end)))
        columns = [FEATURE_PREFIX + name for name in features]
        columns = [name for name in columns if name in now.columns and name in before.columns]
        if len(before) > _MOST:
            before = before.sample(_MOST, seed=0)
        weight = label_weights(before, hiding=self._hiding).weight if self._hiding else np.ones(len(before))
        seen, positives = int((weight > 0).sum()), int(_column(before, "label")[weight > 0].sum())
        enough = min(seen, len(now)) >= _FEWEST and min(positives, seen - positives) >= _FEWEST_POSITIVES
        if not columns or not enough:
            return ()
        probability, costs = self._forecast(now)
        try:
            found = estimate_under_shift(
                reference=_matrix(before, columns),
                reference_score=_column(before, "probability"),
                reference_y=_column(before, "label"),
                reference_weight=weight if self._hiding else None,
                current=_matrix(now, columns),
                current_score=probability,
                forecast=probability,
                most=_MOST,
                **costs,
            )
        except MissingExtra:
            return ()
        weighed = f"{seen:,} labelled rows weighed to look like this day, worth {found.n_effective:,.0f}"
        if not found.reliable:
            rows = "too few labelled rows look like this day: only labels can tell"
            name = "average_precision" + UNDER_SHIFT
            return (Estimate(name=name, value=math.nan, lower=0.0, upper=1.0, n_obs=len(now), definition=rows),)
        estimates = [
            dataclasses.replace(_renamed(one, one.name + UNDER_SHIFT), definition=f"{one.definition}; {weighed}")
            for one in found.performance.estimates
            if one.name in METRICS
        ]
        return self._written(version, estimates, start, end, made_at)

    def _answered(self, rows: "pl.DataFrame") -> "pl.DataFrame":
        import polars as pl

        given = rows.filter(pl.col("probability").is_finite())
        return given if self._costs is None else given.filter(pl.col(self._amount).is_finite())

    def _known(self, rows: "pl.DataFrame") -> "pl.DataFrame":
        import polars as pl

        given = rows.filter(pl.col("probability").is_finite())
        if not self._hiding:
            return given.drop_nulls("label")
        # What could not be seen belongs to the mix of rows; a label of it, should there be one, teaches nothing.
        hidden = pl.col("action").is_in(list(self._hiding))
        label = pl.when(hidden).then(0.0).otherwise(pl.col("label").cast(pl.Float64))
        return given.with_columns(label=label).drop_nulls("label")

    def _forecast(self, given: "pl.DataFrame") -> tuple[NDArray[np.float64], dict[str, Any]]:
        probability = _column(given, "probability")
        if self._costs is None:
            return probability, {}
        actions, amounts = given["action"].to_numpy(), _column(given, self._amount)
        return probability, {
            "cost_if_positive": self._costs.realised(actions, amounts, np.ones(len(amounts), dtype=bool)),
            "cost_if_negative": self._costs.realised(actions, amounts, np.zeros(len(amounts), dtype=bool)),
        }

    def _written(
        self, version: str, found: Sequence[Estimate], start: int, end: int, made_at: int
    ) -> tuple[Estimate, ...]:
        # Rows that came late, or labels that were looked at: an estimate is graded as it was first made.
        with contextlib.suppress(Conflict):
            self.ledger.record(version, found, start=start, end=end, made_at=made_at)
        return tuple(found)

    def realise(
        self, version: str, found: Performance, start: int, end: int, *, as_of: int
    ) -> tuple[EstimatePair, ...]:
        """Writes down what the labels of a day say, and returns it beside what was estimated.

        Args:
            version: Which version.
            found: Its realised performance of that day.
            start: When the day begins, in microseconds.
            end: When it ends.
            as_of: When the labels were looked at, in microseconds.

        Returns:
            The pairs of that day; empty where nothing was estimated or no label is known.
        """
        if not found.n_labelled:
            return ()
        values = [
            _renamed(found.fraud_rate, "positive_rate"),
            found.auc,
            found.average_precision,
            found.brier,
            _renamed(found.cost_per_decision, "cost"),
        ]
        # Where what was blocked has no label, the labels that there are say less of the metrics than their number does.
        said = {
            metric
            for metric in _SHIFTED
            if any((pair.start, pair.end) == (start, end) for pair in self.ledger.pairs(version, metric))
        }
        values += [_renamed(one, one.name + UNDER_SHIFT) for one in values if one.name + UNDER_SHIFT in said]
        share = max(1e-6, min(found.n_labelled / found.n_decisions, found.informed))
        self.ledger.realise(version, values, start=start, end=end, labelled=share, as_of=as_of)
        pairs = (pair for metric in (*METRICS, *sorted(said)) for pair in self.ledger.pairs(version, metric))
        return tuple(pair for pair in pairs if (pair.start, pair.end) == (start, end) and pair.realised is not None)


def baseline_name(metric: str) -> str:
    """Returns the name under which a profile's baseline has a metric of the ledger.

    Example:
        >>> baseline_name("roc_auc"), baseline_name("average_precision_under_shift")
        ('auc', 'average_precision')
    """
    plain = metric.removesuffix(UNDER_SHIFT)
    return _BY_BASELINE.get(plain, plain)


def worth_telling(
    estimates: Sequence[Estimate], baseline_of: "Callable[[str], Estimate | None]"
) -> tuple[tuple[Estimate, Estimate | None], ...]:
    """Returns what helps to decide at night: of ranking and cost the best estimate each, where it says something.

    Where rows were weighed to look like the day, that estimate stands for the plain one. One whose interval is more
    than four times as wide as when the version was made is left out, and the plain one is asked instead. Where hardly
    any labelled row looks like the day, this is all that is said.

    Args:
        estimates: What was estimated of one day of one version.
        baseline_of: Gives what was measured when it was made, by the name that `baseline_name` returns.

    Returns:
        Estimates, each beside what it was when the version was made.

    Example:
        >>> def estimate(name, lower, upper):
        ...     return Estimate(name=name, value=(lower + upper) / 2, lower=lower, upper=upper, n_obs=900)
        >>> found = [estimate("cost", 0.2, 0.5), estimate("cost_under_shift", -0.4, 1.1)]
        >>> [one.name for one, _ in worth_telling(found, {"cost_per_decision": estimate("cost", 0.1, 0.2)}.get)]
        ['cost']
    """
    by_name = {one.name: one for one in estimates}
    blind = [one for one in estimates if one.name.endswith(UNDER_SHIFT) and math.isnan(one.value)]
    if blind:
        return tuple((one, None) for one in blind[:1])
    found = []
    for metric in _WORTH_TELLING:
        made = baseline_of(baseline_name(metric))
        width = math.inf if made is None or math.isnan(made.value) else _TIMES_AS_WIDE * (made.upper - made.lower)
        given = (by_name.get(name) for name in (metric + UNDER_SHIFT, metric))
        told = [one for one in given if one is not None and one.upper - one.lower <= width]
        found += [(one, made) for one in told[:1] if not math.isnan(one.value)]
    return tuple(found)


def _of(version: str, rows: "pl.DataFrame") -> "pl.DataFrame":
    return rows.filter(rows["model_version"] == version)


def _column(rows: "pl.DataFrame", name: str) -> NDArray[np.float64]:
    import polars as pl

    return rows[name].cast(pl.Float64).to_numpy()


def _matrix(rows: "pl.DataFrame", columns: Sequence[str]) -> NDArray[np.float64]:
    return np.column_stack([_column(rows, name) for name in columns])


def _renamed(estimate: Estimate, name: str) -> Estimate:
    return Estimate(
        name=name,
        value=estimate.value,
        lower=estimate.lower,
        upper=estimate.upper,
        n_obs=estimate.n_obs,
        confidence_level=estimate.confidence_level,
        definition=estimate.definition,
    )
