"""A home whose service has decided on synthetic rows, for what learns from its log."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitok import ids
from vitok.clock import DAY, HOUR
from vitok.decision import Outcome
from vitok.decisions import Constant, DecisionBlock, DecisionLog, OutcomeLog
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.messages import OUTCOME_KIND, log_schema

Law = Callable[[NDArray[np.float64]], NDArray[np.float64]]
BEGIN = 17_600 * DAY


def rows(n: int, *, seed: int = 0) -> NDArray[np.float64]:
    """n rows as the service has them: amounts and counts, with some values missing; shape (n, features)."""
    rng = np.random.default_rng(seed)
    X = rng.poisson(2.0, (n, len(FEATURES.names))).astype(np.float64)
    X[:, 0] = rng.lognormal(3.5, 0.8, n)
    X[:, 5] = np.where(rng.random(n) < 0.1, np.nan, X[:, 5])
    return X


class Life:
    """Decisions on rows, evenly over some days, and their outcomes a delay later, both logged as time goes by.

    Args:
        home: The home.
        X: Shape (n, features).
        law: From rows to the probability of fraud; also what the champion says.
        days: How long it takes.
        delay: From a decision to its outcome, in microseconds.
        seed: Of the labels.
        columns: Columns of the log that are other than usual, n values each.

    Attributes:
        label: What each decision turns out to be, shape (n,).
        end: When all is known, in microseconds.
    """

    def __init__(
        self,
        home: Path,
        X: NDArray[np.float64],
        law: Law,
        *,
        days: float,
        delay: int,
        seed: int = 1,
        columns: Mapping[str, Any] | None = None,
    ) -> None:
        n = len(X)
        self.X, self.said = X, law(X)
        self.label = (np.random.default_rng(seed).random(n) < self.said).astype(np.float64)
        self.times = BEGIN + (np.arange(n) * (days * DAY / n)).astype(np.int64)
        self.delay = delay
        self.end = int(self.times[-1]) + delay + 2 * HOUR
        self._columns = dict(columns or {})
        self._done = [0, 0]
        self._log = DecisionLog(home / "log" / "decisions", log_schema())
        self._outcomes = OutcomeLog(home / "log" / "outcomes")

    def until(self, now: int) -> int:
        """Logs what happens before a time, and returns it."""
        first, last = self._done[0], int(np.searchsorted(self.times, now))
        if last > first:
            self._log.append(DecisionBlock(**self._block(first, last)))
        told, heard = self._done[1], int(np.searchsorted(self.times + self.delay, now))
        if heard > told:
            self._outcomes.append([self._outcome(i) for i in range(told, heard)])
        self._done = [last, heard]
        return now

    def close(self) -> None:
        """Seals the logs."""
        self._log.close()
        self._outcomes.close()

    def _block(self, first: int, last: int) -> dict[str, Any]:
        n, X, times, said = last - first, self.X[first:last], self.times[first:last], self.said[first:last]
        usual = {
            "decision_id": ids.uuid7s(n),
            "request_id": [f"r{i}" for i in range(first, last)],
            "event_time": times,
            "ingest_time": times,
            "entities": ([f"c{i % 50}" for i in range(first, last)], [f"t{i % 80}" for i in range(first, last)]),
            "request": (X[:, 0].tolist(),),
            "features": X,
            "feature_status": Constant("fresh"),
            "model_version": Constant("fraud/1"),
            "stage": Constant("Production"),
            "route": Constant("champion"),
            "route_reason": Constant(""),
            "score": said,
            "probability": said,
            "shadow_version": Constant(None),
            "shadow_probability": Constant(None),
            "policy_version": Constant("tiers"),
            "action": ["allow"] * n,
            "propensity": np.ones(n),
            "latency_us": np.zeros(n, np.int32),
            "cost": np.zeros(n),
        }
        return usual | {name: values[first:last] for name, values in self._columns.items()}

    def _outcome(self, i: int) -> Outcome:
        moment = int(self.times[i]) + self.delay
        return Outcome(
            request_id=f"r{i}",
            kind=OUTCOME_KIND,
            value=float(self.label[i]),
            event_time=moment,
            ingest_time=moment,
        )
