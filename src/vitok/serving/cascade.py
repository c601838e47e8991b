"""A small model first, and a large one for what the small one is unsure of."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitok.errors import InvalidInput, ServiceError, VitokError
from vitok.serving.breaker import Nanoseconds
from vitok.serving.paid_calls import dearer, paid
from vitok.serving.retries import NO_DEADLINE, allowance
from vitok.serving.shadow import Mirror
from vitok.serving.targets import (
    Batch,
    LocalTarget,
    Places,
    Scored,
    Target,
    TargetFailed,
    all_local,
    asked,
    asked_here,
    because,
    close_all,
    merged,
    part,
)
from vitok.serving.thresholds import confidence_of
from vitok.stats import Estimate, wilson

Confidence = Callable[[np.ndarray], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Rows that both models of a cascade have answered: what tells how good the small one is.

    Attributes:
        batch: The requests.
        small: Answers of the small model, shape (n,) or (n, k).
        large: Answers of the large model.
        propensity: Probability with which the large model was asked as well: 1 for what was escalated, the share of
            the audit for what was not. Weight a row by its inverse.
        escalated: Whether the large model's answers acted.
    """

    batch: Batch
    small: np.ndarray
    large: np.ndarray
    propensity: float
    escalated: bool


@dataclass(frozen=True, kw_only=True)
class CascadeReport:
    """What a cascade has done so far.

    Attributes:
        rows: Rows that were answered.
        escalated: Rows that the large model was asked about because the small one was unsure.
        kept: Rows of those for which the small model's answer stood, since the large one gave none.
        apart_above: Share of the rows that were not escalated in which the large model would have decided otherwise,
            by the audit.
        apart_below: The same share of the rows that were.
        audit_dropped: Audited batches that were dropped because the queue was full.
        audit_failed: Audited batches that the large model gave no answer to.
        broken: How often `on_pairs` itself has failed.

    Example:
        >>> from vitok.serving.targets import LocalModel
        >>> report = Cascade(*[LocalModel(name, lambda rows: rows[:, 0]) for name in "ab"], threshold=0.8).report
        >>> print(report)
        0 rows, 0 escalated, 0 kept without the large model; not escalated and decided otherwise by the large model:
        rate undefined (no trials, n = 0)
    """

    rows: int
    escalated: int
    kept: int
    apart_above: Estimate
    apart_below: Estimate
    audit_dropped: int
    audit_failed: int
    broken: int

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows, {self.escalated:,} escalated, {self.kept:,} kept without the large model; not "
            f"escalated and decided otherwise by the large model: {self.apart_above}"
        )


class Cascade:
    """Asks a small model, and a large one about the requests whose confidence is below a threshold.

    A confidence exactly at the threshold stays with the small model; one that is no number is escalated. Where the
    small model fails the large one is asked about everything; where the large one fails the small one's answers
    stand, as fallback. The confidence must be calibrated, and the threshold chosen on data, by `frontier`.

    How good the small model is where it is sure cannot be seen from what was escalated. So of the rest a random share
    is shown to the large model too, off the path; its answers do not act and are logged with their propensity.

    Args:
        small: The cheap model.
        large: The dear one.
        threshold: Confidence below which a request is escalated.
        confidence: From the small model's answers to its confidence, shape (n,); by default that of a probability.
        audit: Share of the requests not escalated that the large model sees as well, in [0, 1].
        auditor: The large model for the audit, where `large` is remote: the audit runs in a thread and a remote
            target belongs to one event loop. By default `large`, which must then be of this process.
        on_pairs: Gets what both have answered; what is audited comes from another thread. Where it raises, that is
            counted, and the request is answered.
        capacity: Audited batches that may wait.
        quality: How good both are together, as measured (see `judged`); larger is better. None where nobody has.
        name: What errors call it.
        seed: Of the audit.
        clock: Nanoseconds.

    Raises:
        InvalidInput: If an argument is out of its range.

    Example:
        >>> from vitok.serving.targets import LocalModel
        >>> small = LocalModel("small", lambda rows: rows[:, 0], cost=1.0)
        >>> large = LocalModel("large", lambda rows: rows[:, 1], cost=9.0)
        >>> route = Cascade(small, large, threshold=0.8)
        >>> scored = route.score(Batch(np.array([[0.95, 0.99], [0.60, 0.10], [0.80, 0.30]])))
        >>> scored.values, scored.cost
        (array([0.95, 0.1 , 0.8 ]), 12.0)
        >>> print(scored.choice(1))
        large as champion: the small model was unsure, below 0.8
    """

    def __init__(
        self,
        small: Target,
        large: Target,
        *,
        threshold: float,
        confidence: Confidence = confidence_of,
        audit: float = 0.0,
        auditor: Target | None = None,
        on_pairs: Callable[[Pairs], None] | None = None,
        capacity: int = 256,
        quality: float | None = None,
        name: str = "cascade",
        seed: int = 0,
        clock: Nanoseconds = time.perf_counter_ns,
    ) -> None:
        if threshold != threshold:
            raise InvalidInput("threshold", threshold, "be a number", "Choose it on data with frontier()")
        if not 0 <= audit <= 1:
            raise InvalidInput("audit", audit, "be in [0, 1]", "For 2 % write 0.02")
        auditor = auditor if auditor is not None else large
        if audit > 0 and auditor is large and not isinstance(large, LocalTarget):
            raise InvalidInput("auditor", None, "be given for a large model that is not of this process")
        self.small = small
        self.large = large
        self.threshold = float(threshold)
        self.quality = quality
        self.name = name
        self._confidence = confidence
        self._audit = audit
        self._on_pairs = on_pairs
        self._clock = clock
        self._generator = np.random.default_rng(seed)
        self._mirror = Mirror(auditor, self._audited, capacity=capacity, clock=clock) if audit > 0 else None
        self._local = all_local([small, large])
        self._rows = self._escalated = self._kept = 0
        # Rows that both have answered, and of those the ones decided otherwise.
        self._above, self._below = [0, 0], [0, 0]
        self._audit_failed = self._broken = 0
        self._sure = f"the small model was sure, {self.threshold:g} or above"
        self._unsure = f"the small model was unsure, below {self.threshold:g}"

    @property
    def version(self) -> str:
        """Versions of both models."""
        return f"{self.small.version} | {self.large.version}"

    @property
    def cost(self) -> float:
        """What a row has cost on the mean: the small model always, the large one by the share escalated so far."""
        share = self._escalated / self._rows if self._rows else 1.0
        return self.small.cost + share * self.large.cost

    def score(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch, where both models are of this process.

        Raises:
            InvalidInput: If one is not, or says that the batch is wrong.
            TargetFailed: If both fail.
        """
        if not self._local:
            raise InvalidInput("targets", self.name, "both be of this process", "Await call() instead")
        small, large = self._local
        try:
            first = asked_here(small, batch, self._limit(deadline))
            up, stay = self._divide(first)
        except ServiceError as error:
            try:
                scored = asked_here(large, batch, deadline)
            except ServiceError as last:
                raise dearer(last, paid(error)) from error
            return self._instead(scored, error)
        if not len(up):
            return self._alone(batch, first)
        above = batch if len(up) == len(batch) else batch.take(up)
        try:
            second: Scored | ServiceError = asked_here(large, above, deadline)
        except ServiceError as error:
            second = error
        return self._both(batch, first, above, second, up, stay)

    async def call(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch. The small model gets half of what the deadline leaves, the large one the rest.

        Raises:
            InvalidInput: If a model says that the batch is wrong.
            TargetFailed: If both fail.
        """
        try:
            first = await asked(self.small, batch, self._limit(deadline), self._clock)
            up, stay = self._divide(first)
        except ServiceError as error:
            try:
                scored = await asked(self.large, batch, deadline, self._clock)
            except ServiceError as last:
                raise dearer(last, paid(error)) from error
            return self._instead(scored, error)
        if not len(up):
            return self._alone(batch, first)
        above = batch if len(up) == len(batch) else batch.take(up)
        try:
            second: Scored | ServiceError = await asked(self.large, above, deadline, self._clock)
        except ServiceError as error:
            second = error
        return self._both(batch, first, above, second, up, stay)

    def _limit(self, deadline: int) -> int:
        if deadline >= NO_DEADLINE:
            return NO_DEADLINE
        now = self._clock()
        return now + allowance(deadline, now, after=1)

    def _divide(self, first: Scored) -> tuple[Places, Places]:
        # A small model whose answers nobody can judge has given none.
        try:
            sure = np.asarray(self._confidence(first.values)) >= self.threshold
        except Exception as error:  # whatever the caller's own function raises
            raise TargetFailed(f"{self.name}: the confidence failed: {error!r}", cost=first.cost) from error
        if sure.shape != (len(first),):
            told = f"{self.name}: the confidence has the shape {sure.shape} for {len(first)} rows"
            raise TargetFailed(told, cost=first.cost)
        self._rows += len(sure)
        return np.flatnonzero(~sure), np.flatnonzero(sure)

    def _instead(self, scored: Scored, error: ServiceError) -> Scored:
        n = len(scored)
        self._rows += n
        self._escalated += n
        tried = error.attempts if isinstance(error, TargetFailed) else ()
        return scored.changed(
            lambda c: c._replace(route="fallback", reason=because(str(error), c.reason), attempts=tried + c.attempts),
            cost=paid(error),
        )

    def _alone(self, batch: Batch, first: Scored) -> Scored:
        self._look(batch, first)
        return first.changed(lambda c: c._replace(reason=because(self._sure, c.reason)))

    def _both(
        self, batch: Batch, first: Scored, above: Batch, second: Scored | ServiceError, up: Places, stay: Places
    ) -> Scored:
        self._escalated += len(up)
        sure = part(first, stay).changed(lambda c: c._replace(reason=because(self._sure, c.reason)))
        if len(stay):
            self._look(batch.take(stay), sure)
        if isinstance(second, ServiceError):
            self._kept += len(up)
            told = f"{self._unsure}, but {second}"
            found = part(first, up).changed(
                lambda c: c._replace(route="fallback", reason=because(told, c.reason)), cost=paid(second)
            )
        else:
            found = second.changed(lambda c: c._replace(reason=because(self._unsure, c.reason)))
            self._pair(Pairs(batch=above, small=first.values[up], large=second.values, propensity=1.0, escalated=True))
        whole = merged(len(batch), [(stay, sure), (up, found)]) if len(stay) else found
        return Scored(whole.values, whole.choices, whole.places, first.cost + found.cost)

    def _look(self, batch: Batch, sure: Scored) -> None:
        if self._mirror is None:
            return
        drawn = np.flatnonzero(self._generator.random(len(batch)) < self._audit)
        if len(drawn):
            self._mirror.put(batch.take(drawn), sure.values[drawn])

    def _audited(self, batch: Batch, small: Any, found: Scored | VitokError) -> None:
        if isinstance(found, VitokError):
            self._audit_failed += 1
            return
        self._pair(Pairs(batch=batch, small=small, large=found.values, propensity=self._audit, escalated=False))

    def _pair(self, pairs: Pairs) -> None:
        counted = self._below if pairs.escalated else self._above
        counted[0] += len(pairs.small)
        counted[1] += _apart(pairs.small, pairs.large)
        if self._on_pairs is not None:
            try:
                self._on_pairs(pairs)
            except Exception:  # noqa: BLE001 - who keeps the pairs must not fail the request
                self._broken += 1

    @property
    def report(self) -> CascadeReport:
        """What it has done so far."""
        return CascadeReport(
            rows=self._rows,
            escalated=self._escalated,
            kept=self._kept,
            apart_above=wilson(self._above[1], self._above[0]),
            apart_below=wilson(self._below[1], self._below[0]),
            audit_dropped=self._mirror.dropped if self._mirror is not None else 0,
            audit_failed=self._audit_failed,
            broken=self._broken,
        )

    def drain(self) -> None:
        """Waits until the audit has seen all that was drawn."""
        if self._mirror is not None:
            self._mirror.drain()

    def close(self) -> None:
        """Ends the audit."""
        if self._mirror is not None:
            self._mirror.close()

    async def aclose(self) -> None:
        """Ends the audit and closes what the models hold open."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)
        await close_all([self.small, self.large])

    def __repr__(self) -> str:
        return f"Cascade({self.small.name!r}, {self.large.name!r}, threshold={self.threshold:g})"


def _apart(small: np.ndarray, large: np.ndarray) -> int:
    # Rows that the two decide otherwise; answers that are no numbers, such as texts, where they are not the same.
    if small.dtype.kind in "biuf" and large.dtype.kind in "biuf":
        return int((_decided(small) != _decided(large)).sum())
    return sum(one != other for one, other in zip(small.tolist(), large.tolist(), strict=True))


def _decided(values: np.ndarray) -> np.ndarray:
    return values.argmax(axis=1) if values.ndim > 1 else values >= 0.5
