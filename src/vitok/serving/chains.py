"""Chains of fallbacks: one target after another, within the deadline, and at the end one that cannot fail."""

import time
from collections.abc import Sequence

import numpy as np

from vitok.errors import InvalidInput, ServiceError, VitokError
from vitok.serving.breaker import Nanoseconds
from vitok.serving.paid_calls import paid
from vitok.serving.retries import NO_DEADLINE, allowance
from vitok.serving.targets import (
    ASKED,
    CERTAIN,
    Attempt,
    Batch,
    Choice,
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
    unanswered,
)

_MILLISECOND = 1_000_000
_FIRST = "the first of the chain"


class Tries:
    """What went before the target that answers.

    Args:
        started: When the request came, in nanoseconds.

    Attributes:
        attempts: All tries so far.
        cost: What they cost.
        why: Why they failed; empty where there was none.
    """

    __slots__ = ("attempts", "cost", "started", "why")

    def __init__(self, started: int) -> None:
        self.started = started
        self.attempts: tuple[Attempt, ...] = ()
        self.cost = 0.0
        self.why = ""

    def failed(self, target: Target, began: int, ended: int, error: VitokError) -> None:
        """Adds a try that failed."""
        own = (Attempt(target.name, (ended - began) // 1000, str(error)),)
        self.attempts += error.attempts or own if isinstance(error, TargetFailed) else own
        self.cost += paid(error)
        self._because(str(error))

    def skipped(self, target: Target) -> None:
        """Adds a target for which no time was left."""
        reason = f"{target.name}: no time was left"
        self.attempts += (Attempt(target.name, 0, reason),)
        self._because(reason)

    def told(self, scored: Scored, target: Target, began: int, ended: int) -> Scored:
        """Adds the tries before to those of the answer."""
        if not self.why:
            return scored
        waited = (began - self.started) // 1000
        own = (Attempt(target.name, (ended - began) // 1000),)
        return scored.changed(
            lambda c: c._replace(attempts=self.attempts + (c.attempts or own), waited=waited + c.waited),
            cost=self.cost,
        )

    def _because(self, reason: str) -> None:
        self.why = f"{self.why}; {reason}" if self.why else reason


class Fallback:
    """Asks one target after another until one answers; the last cannot fail, so there is always an answer.

    Each target gets as long as the deadline leaves, divided by the targets that may follow, less a margin for the
    last. What a target refuses as wrong goes on to the next as well: what suits nobody still needs an answer. So do
    the requests for which it gives no finite number, while the others keep theirs.

    Args:
        targets: In order; the last is a `Constant` or `Rules`.
        name: What errors call it.
        margin: Seconds that are kept for the last target and for writing the answer.
        clock: Nanoseconds.

    Attributes:
        answered: How many batches each target has answered, or a part of one.

    Raises:
        InvalidInput: If the last target may fail.

    Example:
        >>> import numpy as np
        >>> from vitok.serving.targets import Constant, LocalModel
        >>> def broken(rows):
        ...     raise OSError("the disk is full")
        >>> route = Fallback([LocalModel("fraud", broken), Constant(0.5, name="rules")])
        >>> print(route.score(Batch(np.zeros((1, 1)))).choice(0))
        rules as fallback: fraud: OSError('the disk is full'); the answer is always 0.5; 2 tries, waited ... us
    """

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        name: str = "fallback",
        margin: float = 0.005,
        clock: Nanoseconds = time.perf_counter_ns,
    ) -> None:
        if not targets or not isinstance(targets[-1], CERTAIN):
            last = targets[-1] if targets else None
            raise InvalidInput("targets", last, "end in a Constant or Rules", "Or there may be no answer at all")
        if not 0 <= margin < 60:
            raise InvalidInput("margin", margin, "be in [0, 60) seconds")
        self.name = name
        self.targets = tuple(targets)
        self.answered = [0] * len(targets)
        self._margin = round(margin * 1e9)
        self._clock = clock
        self._local = all_local(targets)
        self._seen: tuple[Choice, ...] = ()
        self._said: tuple[Choice, ...] = ()

    @property
    def version(self) -> str:
        """Version of the first target."""
        return self.targets[0].version

    @property
    def cost(self) -> float:
        """What a row costs at the first target."""
        return self.targets[0].cost

    @property
    def quality(self) -> float | None:
        """The first target's quality."""
        return self.targets[0].quality

    def _limit(self, k: int, now: int, deadline: int) -> int:
        if deadline >= NO_DEADLINE:
            return NO_DEADLINE
        follow = sum(not isinstance(target, CERTAIN) for target in self.targets[k + 1 :])
        return now + allowance(deadline, now, after=follow, margin=self._margin)

    def score(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch, where all targets are of this process.

        Raises:
            InvalidInput: If a target is not.
        """
        if not self._local:
            raise InvalidInput("targets", self.name, "all be of this process", "Await call() instead")
        tries = Tries(self._clock())
        rest = _Rest(batch)
        for k, target in enumerate(self._local[:-1]):
            now = self._clock()
            try:
                scored = asked_here(target, rest.batch, self._limit(k, now, deadline))
            except (InvalidInput, ServiceError) as error:
                tries.failed(target, now, self._clock(), error)
                continue
            if self._take(rest, k, tries, now, scored):
                return rest.whole()
        return self._certain(rest, tries)

    async def call(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch; there is always an answer."""
        tries = Tries(self._clock())
        rest = _Rest(batch)
        grace = min(self._margin // 2, 2 * _MILLISECOND)
        for k, target in enumerate(self.targets[:-1]):
            now = self._clock()
            limit = self._limit(k, now, deadline)
            if limit <= now:
                tries.skipped(target)
                continue
            try:
                scored = await asked(target, rest.batch, limit, self._clock, grace=grace)
            except (InvalidInput, ServiceError) as error:
                tries.failed(target, now, self._clock(), error)
                continue
            if self._take(rest, k, tries, now, scored):
                return rest.whole()
        return self._certain(rest, tries)

    def _take(self, rest: "_Rest", k: int, tries: Tries, now: int, scored: Scored) -> bool:
        # Whether all requests are answered now.
        nothing = unanswered(scored.values)
        if not len(nothing):
            rest.answer(self._answer(k, tries, now, scored))
            return True
        reason = f"{self.targets[k].name}: no finite number"
        if scored.values.ndim > 1 or len(nothing) == len(scored):
            # Answers of several columns cannot stand beside the number with which the chain ends.
            tries.failed(self.targets[k], now, self._clock(), TargetFailed(reason, cost=scored.cost))
            return False
        well = np.flatnonzero(np.isfinite(scored.values))
        rest.answer(self._answer(k, tries, now, part(scored, well)), well, nothing)
        # What went before has been counted with these.
        tries.cost = 0.0
        tries.failed(self.targets[k], now, self._clock(), TargetFailed(reason, cost=scored.cost))
        return False

    def _certain(self, rest: "_Rest", tries: Tries) -> Scored:
        last = self.targets[-1]
        assert isinstance(last, CERTAIN)  # noqa: S101
        now = self._clock()
        rest.answer(self._answer(len(self.targets) - 1, tries, now, last.score(rest.batch)))
        return rest.whole()

    def _answer(self, k: int, tries: Tries, now: int, scored: Scored) -> Scored:
        self.answered[k] += 1
        if not tries.why:
            if scored.choices is not self._seen:
                # A model of this process says the same each time.
                self._seen, self._said = scored.choices, tuple(map(_chosen, scored.choices))
            return Scored(scored.values, self._said, scored.places, scored.cost)
        fell = scored.changed(lambda c: c._replace(route="fallback", reason=because(tries.why, c.reason)))
        return tries.told(fell, self.targets[k], now, self._clock())

    async def aclose(self) -> None:
        """Closes what the targets hold open; call it on the event loop that has used them, before that ends."""
        await close_all(self.targets)

    def __repr__(self) -> str:
        return f"Fallback({self.name!r}, {len(self.targets)} targets)"


def _chosen(choice: Choice) -> Choice:
    return choice._replace(reason=_FIRST if choice.reason == ASKED else choice.reason)


class _Rest:
    # The requests of a batch that have no answer yet, and the answers that there are.
    __slots__ = ("_parts", "_places", "_whole", "batch")

    def __init__(self, batch: Batch) -> None:
        self.batch = self._whole = batch
        self._places: Places | None = None  # of `batch` in the whole; None for all
        self._parts: list[tuple[Places | None, Scored]] = []

    def answer(self, scored: Scored, well: Places | None = None, nothing: Places | None = None) -> None:
        places = self._places
        if well is None or nothing is None:
            self._parts.append((places, scored))
            return
        self._parts.append((well if places is None else places[well], scored))
        self._places = nothing if places is None else places[nothing]
        self.batch = self.batch.take(nothing)

    def whole(self) -> Scored:
        if len(self._parts) == 1:
            return self._parts[0][1]
        return merged(len(self._whole), [(places, scored) for places, scored in self._parts if places is not None])
