"""Performance of each closed day before its labels are in, written down, and held against what they say later."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from vitok.errors import Conflict
from vitok.monitoring.estimate_ledger import EstimateLedger, EstimatePair
from vitok.monitoring.estimation import PerformanceEstimator
from vitok.monitoring.performance import Performance
from vitok.policies import Costs
from vitok.stats import Estimate

if TYPE_CHECKING:
    import polars as pl

METRICS = ("positive_rate", "roc_auc", "average_precision", "brier", "cost")
"""What is estimated, by the names under which `EstimateLedger` keeps it."""
_BY_BASELINE = {"roc_auc": "auc", "positive_rate": "fraud_rate", "cost": "cost_per_decision"}


class EstimateWatch:
    """Estimates days without labels and realises them once the labels are in; `Watch` has one.

    Args:
        ledger: Where both are kept.
        estimator_of: Gives the estimator of a version, None for one without.
        costs: What actions cost; None leaves cost out.
        amount: Column with the amount.
    """

    def __init__(
        self,
        ledger: EstimateLedger,
        *,
        estimator_of: Callable[[str], PerformanceEstimator | None],
        costs: Costs | None = None,
        amount: str = "amount",
    ) -> None:
        self.ledger = ledger
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
        import polars as pl

        estimator = self._estimator_of(version)
        given = rows.filter(pl.col("probability").is_not_null() & pl.col("probability").is_not_nan())
        if self._costs is not None:
            given = given.filter(pl.col(self._amount).is_finite())
        if estimator is None or not given.height:
            return ()
        probability = given["probability"].cast(pl.Float64).to_numpy()
        cost_1 = cost_0 = None
        if self._costs is not None:
            actions, amounts = given["action"].to_numpy(), given[self._amount].cast(pl.Float64).to_numpy()
            cost_1 = self._costs.realised(actions, amounts, np.ones(len(amounts), dtype=bool))
            cost_0 = self._costs.realised(actions, amounts, np.zeros(len(amounts), dtype=bool))
        expected = estimator.estimate(
            probability, forecast=probability, cost_if_positive=cost_1, cost_if_negative=cost_0
        )
        found = tuple(one for one in expected.estimates if one.name in METRICS)
        # Rows that came late, or labels that were looked at: an estimate is graded as it was first made.
        with contextlib.suppress(Conflict):
            self.ledger.record(version, found, start=start, end=end, made_at=made_at)
        return found

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
        share = max(1e-6, min(found.n_labelled / found.n_decisions, found.informed))
        self.ledger.realise(version, values, start=start, end=end, labelled=share, as_of=as_of)
        pairs = (pair for metric in METRICS for pair in self.ledger.pairs(version, metric))
        return tuple(pair for pair in pairs if (pair.start, pair.end) == (start, end) and pair.realised is not None)


def baseline_name(metric: str) -> str:
    """Returns the name under which a profile's baseline has a metric of the ledger.

    Example:
        >>> baseline_name("roc_auc"), baseline_name("average_precision")
        ('auc', 'average_precision')
    """
    return _BY_BASELINE.get(metric, metric)


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
