"""Routes that choose one target for a batch: the one that answers first, or the cheapest that is good enough."""

import math
import time
from collections.abc import Sequence

from vitok.errors import InvalidInput, ServiceError
from vitok.serving.balance import LeastLatency, checked
from vitok.serving.breaker import Breaker, BreakerRules, Nanoseconds
from vitok.serving.chains import Tries
from vitok.serving.pool import Pool
from vitok.serving.retries import NO_DEADLINE, Budget, RecentQuantile, allowance
from vitok.serving.targets import (
    Batch,
    Scored,
    Target,
    TargetFailed,
    TimedOut,
    all_local,
    asked,
    because,
    close_all,
    labelled,
)


class LowestLatency(Pool):
    """Gives each batch to the target that is expected to answer first: observed latency times calls in flight.

    Targets may be of unlike speed. One that has not been asked for a while is tried again. Breakers, retries and
    hedges are those of a `Pool`.

    Args:
        targets: The targets.
        name: What choices call it.
        breaker: Rules of each target's breaker.
        tries: Most tries of a request.
        retries: How many retries there may be.
        clock: Nanoseconds.

    Example:
        >>> import numpy as np
        >>> from vitok.serving.targets import Constant
        >>> route = LowestLatency([Constant(0.0), Constant(1.0)])
        >>> route.score(Batch(np.zeros((1, 1)))).choice(0).reason
        'no latency known yet, expected, the fastest; the answer is always 0'
    """

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        name: str = "lowest latency",
        breaker: BreakerRules | None = None,
        tries: int = 2,
        retries: Budget | None = None,
        clock: Nanoseconds = time.perf_counter_ns,
    ) -> None:
        super().__init__(
            targets,
            name=name,
            balancer=LeastLatency(),
            breaker=breaker,
            tries=tries,
            retries=retries,
            clock=clock,
        )


class CostAware:
    """Gives each batch to the cheapest target that is good enough and is expected to answer in time.

    In time means: the stated quantile of its recent calls fits into what the deadline leaves. Of those that are good
    enough, where none is in time, the fastest is asked; where none is good enough, the best. Each target has a
    breaker, since what fails at once would look fast; where one fails, the next choice is asked. Not made for several
    threads.

    Args:
        targets: The targets, each with a cost; with `least_quality`, each with a quality.
        least_quality: Quality from which a target is good enough; by default any is.
        quantile: Of the recent latencies, in (0, 1).
        expected: Seconds that a call of each target is expected to take before it has been seen to; by default 0.
        breaker: Rules of each target's breaker.
        tries: Most targets that a batch is given to, at least 1.
        name: What errors call it.
        clock: Nanoseconds.

    Attributes:
        targets: The targets.
        breakers: One for each.

    Raises:
        InvalidInput: If a target has no quality where one is asked for.

    Example:
        >>> import numpy as np
        >>> from vitok.serving.targets import LocalModel
        >>> small = LocalModel("small", lambda rows: rows[:, 0], cost=1.0, quality=0.90)
        >>> large = LocalModel("large", lambda rows: rows[:, 0], cost=9.0, quality=0.96)
        >>> route = CostAware([large, small], least_quality=0.95)
        >>> route.score(Batch(np.zeros((1, 1)))).choice(0).reason
        'the cheapest of 1 with a quality of at least 0.95 and in time'
    """

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        least_quality: float = -math.inf,
        quantile: float = 0.95,
        expected: Sequence[float] | None = None,
        breaker: BreakerRules | None = None,
        tries: int = 2,
        name: str = "cheapest",
        clock: Nanoseconds = time.perf_counter_ns,
    ) -> None:
        if not targets:
            raise InvalidInput("targets", targets, "hold at least one")
        if math.isnan(least_quality):
            raise InvalidInput("least_quality", least_quality, "be a number")
        if tries < 1:
            raise InvalidInput("tries", tries, "be at least 1")
        for k, target in enumerate(targets):
            if least_quality > -math.inf and target.quality is None:
                raise InvalidInput(f"targets[{k}].quality", None, "be measured", "Evaluate it, or ask for none")
        self.name = name
        self.targets = tuple(targets)
        self.breakers = tuple(Breaker(breaker, clock=clock, seed=k) for k in range(len(targets)))
        self.version = " | ".join(dict.fromkeys(target.version for target in targets))
        self._quality = least_quality
        self._tries = tries
        self._clock = clock
        self._seen = [RecentQuantile(quantile, keep=500, least=20) for _ in targets]
        self._local = all_local(targets)
        seconds = checked("expected", expected if expected is not None else [0.0] * len(targets), len(targets))
        self._expected = [round(value * 1e9) for value in seconds]

    @property
    def cost(self) -> float:
        """What a row costs at the cheapest that is good enough."""
        return self.targets[self._best(range(len(self.targets)), NO_DEADLINE)[0]].cost

    @property
    def quality(self) -> float | None:
        """The quality of the cheapest that is good enough."""
        return self.targets[self._best(range(len(self.targets)), NO_DEADLINE)[0]].quality

    def _latency(self, k: int) -> float:
        value = self._seen[k].value
        return self._expected[k] if math.isnan(value) else value

    def _best(self, candidates: Sequence[int], left: int) -> tuple[int, str]:
        # Costs may be measured as it runs, so they are compared anew each time; targets are few.
        qualities = [target.quality if target.quality is not None else -math.inf for target in self.targets]
        good = [k for k in candidates if qualities[k] >= self._quality]
        if not good:
            best = max(candidates, key=lambda k: qualities[k])
            return best, f"the best, since none has a quality of at least {self._quality:g}"
        wanted = f" with a quality of at least {self._quality:g}" if self._quality > -math.inf else ""
        timely = [k for k in good if self._latency(k) <= left]
        if not timely:
            fastest = min(good, key=self._latency)
            return fastest, f"the fastest{wanted}, since none is expected within {left / 1e6:.3g} ms"
        cheapest = min(timely, key=lambda k: (self.targets[k].cost, self._latency(k)))
        return cheapest, f"the cheapest of {len(timely)}{wanted} and in time"

    def _next(self, tried: list[int], tries: Tries, left: int) -> tuple[int, int, str]:
        ready = [k for k, breaker in enumerate(self.breakers) if k not in tried and breaker.admits]
        if left <= 0 or not ready or len(tried) >= self._tries:
            why = tries.why or ("no time was left" if left <= 0 else "no target may be asked")
            kind = TimedOut if left <= 0 else TargetFailed
            raise kind(f"{self.name}: {why}", attempts=tries.attempts, cost=tries.cost)
        k, reason = self._best(ready, left)
        tried.append(k)
        return k, self.breakers[k].admit(), because(reason, f"after {tries.why}") if tries.why else reason

    def _end(self, k: int, permit: int, started: int, *, ok: bool) -> None:
        took = self._clock() - started
        self._seen[k].add(took)
        self.breakers[k].record(permit, ok=ok, took=took)

    def score(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch, where all targets are of this process.

        Raises:
            InvalidInput: If a target is not, or says that the batch is wrong.
            TargetFailed: If none answers.
        """
        if not self._local:
            raise InvalidInput("targets", self.name, "all be of this process", "Await call() instead")
        tried: list[int] = []
        tries = Tries(self._clock())
        while True:
            now = self._clock()
            k, permit, reason = self._next(tried, tries, deadline - now)
            try:
                scored = self._local[k].score(batch, deadline)
            except (InvalidInput, ServiceError) as error:
                self._end(k, permit, now, ok=isinstance(error, InvalidInput))
                if isinstance(error, InvalidInput):
                    raise
                tries.failed(self.targets[k], now, self._clock(), error)
                continue
            self._end(k, permit, now, ok=True)
            return tries.told(labelled(("champion", reason, 1.0), scored), self.targets[k], now, self._clock())

    async def call(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch.

        Raises:
            InvalidInput: If a target says that the batch is wrong.
            TargetFailed: If none answers.
        """
        tried: list[int] = []
        tries = Tries(self._clock())
        while True:
            now = self._clock()
            k, permit, reason = self._next(tried, tries, deadline - now)
            limit = deadline
            if deadline < NO_DEADLINE:
                follow = min(self._tries, len(self.targets)) - len(tried)
                limit = now + allowance(deadline, now, after=follow)
                # What is expected to need more than its share gets it all: it was chosen because it fits.
                limit = limit if now + self._latency(k) <= limit else deadline
            try:
                scored = await asked(self.targets[k], batch, limit, self._clock)
            except (InvalidInput, ServiceError) as error:
                self._end(k, permit, now, ok=isinstance(error, InvalidInput))
                if isinstance(error, InvalidInput):
                    raise
                tries.failed(self.targets[k], now, self._clock(), error)
                continue
            except BaseException:
                self.breakers[k].release(permit, took=self._clock() - now)
                raise
            self._end(k, permit, now, ok=True)
            return tries.told(labelled(("champion", reason, 1.0), scored), self.targets[k], now, self._clock())

    async def aclose(self) -> None:
        """Closes what the targets hold open; call it on the event loop that has used them, before that ends."""
        await close_all(self.targets)

    def __repr__(self) -> str:
        return f"CostAware({self.name!r}, {len(self.targets)} targets)"
