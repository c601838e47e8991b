"""The decision log of a model that is served by itself: each row that it answered, with what it saw."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from vitok import decisions, ids
from vitok.clock import Clock, SystemClock
from vitok.decisions.segments import Durability
from vitok.errors import InvalidInput
from vitok.serving.hosted import Answered

_NONE, _FRESH, _CHAMPION = decisions.Constant("none"), decisions.Constant("fresh"), decisions.Constant("champion")
_EMPTY = decisions.Constant("")
_FEW, _MOST_SAME = 64, 256
_NO_VERSION, _NO_NUMBER, _SURE = decisions.Constant(None), decisions.Constant(None), decisions.Constant(1.0)


class InferenceLog:
    """Writes the rows that a model answers into a decision log, where monitoring, labels and replay find them.

    A row is a decision without an action: `action` and `policy_version` say `"none"`, the propensity is 1, or that of
    the route where one drew the model, and the probability is the score, through the calibrator where there is one.
    A caller's id is the `request_id`, under which outcomes are joined; a row without one takes its decision id.

    Args:
        folder: Folder of the log, of which this is the only writer.
        system: What decides: the name of the model.
        features: Names of the columns of the matrix.
        calibrator: From scores to probabilities, shape (n,) both; None leaves the score as it is.
        stage: Stage of the version that answers.
        durability: As for `DecisionLog`.
        clock: Tells when a row was answered.

    Raises:
        StoreError: If another process writes the folder, or it cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        system: str,
        features: Sequence[str],
        calibrator: Callable[[np.ndarray], np.ndarray] | None = None,
        stage: str = "Production",
        durability: Durability = "process",
        clock: Clock | None = None,
    ) -> None:
        if not features:
            raise InvalidInput("features", features, "name the columns of the model's matrix")
        schema = decisions.LogSchema(system, (), (), tuple(features))
        self._log = decisions.DecisionLog(folder, schema, durability=durability)
        self._clock = clock or SystemClock()
        self.calibrator = calibrator
        self._stage = decisions.Constant(stage)
        self._version = decisions.Constant("")
        self._same: dict[str, decisions.Constant] = {}

    def record(self, batch: Answered) -> Sequence[bytes]:
        """Writes a batch.

        Returns:
            The decision id of each row.

        Raises:
            StoreError: If it could not be written; then none of it is in the log.
        """
        n = len(batch.score)
        own = ids.uuid7s(n)
        names: Sequence[str] | ids.Made = own
        if any(batch.request_ids):
            names = [given or made for given, made in zip(batch.request_ids, own.texts, strict=True)]
        now, cost = np.empty(n, np.int64), np.empty(n)
        now.fill(self._clock.now())
        cost[:] = batch.cost
        latency = batch.latency_us
        if latency.dtype != np.int32:
            latency = np.minimum(latency, 2**31 - 1).astype(np.int32)
        chosen = batch.chosen
        if chosen is None and self._version.value != batch.version:
            self._version = decisions.Constant(batch.version)
        self._log.append(
            decisions.DecisionBlock(
                decision_id=own,
                request_id=names,
                event_time=now,
                ingest_time=now,
                entities=(),
                request=(),
                features=batch.X,
                feature_status=_FRESH,
                model_version=self._version if chosen is None else chosen.versions,
                stage=self._stage,
                route=_CHAMPION if chosen is None else chosen.routes,
                route_reason=_NONE if chosen is None else chosen.reasons,
                score=batch.score,
                probability=batch.score if self.calibrator is None else self.calibrator(batch.score),
                shadow_version=_NO_VERSION,
                shadow_probability=_NO_NUMBER,
                policy_version=_NONE,
                action=_NONE,
                propensity=_SURE if chosen is None else chosen.propensities,
                latency_us=latency,
                cost=cost,
                tenant=_EMPTY if batch.tenants is None else self._texts(batch.tenants),
                team=_EMPTY if batch.teams is None else self._texts(batch.teams),
                trace_id=_EMPTY if batch.trace_ids is None else batch.trace_ids,
            )
        )
        return own

    def _texts(self, values: Sequence[str]) -> Sequence[str] | decisions.Constant:
        # Small batches mostly come from one tenant, and the column of one value is made once.
        first = values[0] if len(values) else ""
        if not 0 < len(values) <= _FEW or values.count(first) < len(values):
            return values
        found = self._same.get(first)
        if found is None:
            if len(self._same) >= _MOST_SAME:
                self._same.clear()
            found = self._same[first] = decisions.Constant(first)
        return found

    def close(self) -> None:
        """Seals the log; a second call does nothing."""
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
