"""The rows of a request against the contract and against what the model was made on, before the model runs."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vitok.errors import InvalidInput
from vitok.guard import AnomalyScorer
from vitok.serving.inference import Breach, Hosted


class Screen:
    """Counts, marks or refuses rows that are unlike the reference profile; bench/serving/guard_on.py measures the cost.

    It is a model's `rules`. A row that breaks the contract is refused as before and not scored for anomaly.

    Args:
        scorer: The scorer; its threshold is the rate of false alarms that it was fitted with.
        rules: The contract's rules, which go first; None where there is none.
        refuse: Whether an anomalous row refuses its request with 422; else it is counted, and told where explained.
        tell: Whether an answer that is explained has the scores. They tell an attacker how near the threshold is.

    Attributes:
        rows: How many rows were looked at.
        flagged: How many of them were anomalous.

    Example:
        >>> from vitok.stats import FrozenEdges
        >>> X = np.random.default_rng(7).normal(size=(6_000, 1))
        >>> edges = FrozenEdges.from_values(X[:3_000, 0])
        >>> column = {"name": "amount", **edges.to_dict(), "counts": edges.count(X[:3_000, 0]).tolist()}
        >>> profile = {"kind": "vitok.reference_profile/1", "n": 3_000, "ignored": [], "columns": [column]}
        >>> screen = Screen(AnomalyScorer.fit(profile, X[3_000:], false_alarm_rate=0.01), refuse=True)
        >>> screen(np.array([[0.1], [1e6]]))
        [(1, 'amount', 'the row is unlike those that the model was made on, most of all in amount')]
    """

    def __init__(
        self,
        scorer: AnomalyScorer,
        *,
        rules: Callable[[np.ndarray], Sequence[Breach]] | None = None,
        refuse: bool = False,
        tell: bool = True,
    ) -> None:
        self.scorer = scorer
        self.rules = rules
        self.refuse = refuse
        self.tell = tell
        self.rows = 0
        self.flagged = 0

    def dress(self, hosted: Hosted) -> None:
        """Sets it before a model, with the rules that the model has, where it has none of its own.

        Raises:
            InvalidInput: If the model takes no matrix with the columns of the profile.
        """
        columns = hosted.runtime.n_features if hosted.runtime.takes_rows else 0
        if columns != len(self.scorer.names):
            raise InvalidInput("model", hosted.name, f"take one matrix of {len(self.scorer.names)} columns")
        if self.rules is None and hosted.rules is not self:
            self.rules = hosted.rules
        hosted.rules = self
        if self.tell:
            hosted.describe = self.describe

    def __call__(self, X: np.ndarray) -> Sequence[Breach]:
        """Returns the rows that are refused, each with the column and the reason.

        Args:
            X: Shape (n, number of columns), NaN where a value is missing.
        """
        breaches = () if self.rules is None else self.rules(X)
        self.rows += len(X)
        odd = self.scorer.odd(X)
        if not odd:
            return breaches
        broken = {breach[0] for breach in breaches}
        places = [place for place in odd if place not in broken]
        self.flagged += len(places)
        if not self.refuse:
            return breaches
        return sorted([*breaches, *(self._breach(X[place], place) for place in places)], key=lambda item: item[0])

    def _breach(self, row: np.ndarray, place: int) -> Breach:
        # The column only: what the reference looks like there is not for whoever probes it.
        features = self.scorer.explain(row, top=1).features
        name = features[0].name if features else self.scorer.names[0]
        return place, name, f"the row is unlike those that the model was made on, most of all in {name}"

    def describe(self, X: np.ndarray) -> dict[str, Any]:
        """Returns what an answer tells of its rows: scores and p-values as texts, and whether any is flagged."""
        found = [self.scorer.explain(row, top=0) for row in X]
        return {
            "anomaly": any(item.flagged for item in found),
            "anomaly_scores": [f"{item.total:.6g}" for item in found],
            "anomaly_p_values": [f"{item.p_value:.4g}" for item in found],
        }
