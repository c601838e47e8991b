"""Routes that choose one target for a batch: the one that answers first, or the cheapest that is good enough."""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from vitok.errors import InvalidInput, ServiceError, VitokError
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
    asked_here,
    because,
    close_all,
    labelled,
)


class LowestLatency(Pool):
    """Gives each batch to the target that is expected to answer first: observed latency times calls in flight.

    The latency is no quantile but Finagle's peak EWMA: a slower call counts at once, faster ones within some ten
    seconds. A target that nobody has asked yet is asked first, by one call at a time; what is known of one that was
    not asked for ten seconds fades until it is tried again. Targets may be of unlike speed. Breakers and retries are
    those of a `Pool`.

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
    enough, where none is in time, the fastest is asked; where none is good enough, the best that is in time. Each
    target has a breaker, since what fails at once would look fast; where one fails, the next choice is asked.

    A target that was too slow is left alone, and nobody would see that it is fast again. So after `again` seconds
    without a call its expected latency fades until one call is tried; if that was faster, what was known before is
    forgotten. Where others are asked, such a try gets its share of the time and another target the rest. Not made for
    several threads.

    Args:
        targets: The targets, each with a cost; with `least_quality`, each with a quality.
        least_quality: Quality from which a target is good enough; by default any is.
        quantile: Of the recent latencies, in (0, 1).
        expected: Seconds that a call of each target is expected to take before it has been seen to; by default 0.
        again: Seconds without a call after which the latency that a target is known for begins to fade, by 63 % in
            as many more.
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
        again: float = 10.0,
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
        if not 0 < again < math.inf:
            raise InvalidInput("again", again, "be seconds, above 0 and finite")
        for k, target in enumerate(targets):
            if target.quality is not None and math.isnan(target.quality):
                raise InvalidInput(f"targets[{k}].quality", target.quality, "be a number, or None")
            if least_quality > -math.inf and target.quality is None:
                raise InvalidInput(f"targets[{k}].quality", None, "be measured", "Evaluate it, or ask for none")
        self.name = name
        self.targets = tuple(targets)
        self.breakers = tuple(Breaker(breaker, clock=clock, seed=k) for k in range(len(targets)))
        self.version = " | ".join(dict.fromkeys(target.version for target in targets))
        self._quality = least_quality
        self._tries = tries
        self._clock = clock
        self._quantile = quantile
        self._seen = [self._none_seen() for _ in targets]
        self._again = again * 1e9
        self._last = [clock()] * len(targets)
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

    def _none_seen(self) -> RecentQuantile:
        return RecentQuantile(self._quantile, keep=500, least=20)

    def _latency(self, k: int) -> float:
        value = self._seen[k].value
        if math.isnan(value):
            return self._expected[k]
        idle = self._clock() - self._last[k]
        return value * math.exp(1 - idle / self._again) if idle > self._again else value

    def _best(self, candidates: Sequence[int], left: int) -> tuple[int, str]:
        # Costs may be measured as it runs, so they are compared anew each time; targets are few.
        qualities = [target.quality if target.quality is not None else -math.inf for target in self.targets]
        good = [k for k in candidates if qualities[k] >= self._quality]
        if not good:
            timely = [k for k in candidates if self._latency(k) <= left]
            best = max(timely or candidates, key=lambda k: qualities[k])
            return best, f"the best, since none has a quality of at least {self._quality:g}"
        wanted = f" with a quality of at least {self._quality:g}" if self._quality > -math.inf else ""
        timely = [k for k in good if self._latency(k) <= left]
        if not timely:
            fastest = min(good, key=self._latency)
            return fastest, f"the fastest{wanted}, since none is expected within {left / 1e6:.3g} ms"
        cheapest = min(timely, key=lambda k: (self.targets[k].cost, self._latency(k)))
        return cheapest, f"the cheapest of {len(timely)}{wanted} and in time"

    def _next(self, tried: list[int], tries: Tries, left: int) -> "_Pick":
        ready = [k for k, breaker in enumerate(self.breakers) if k not in tried and breaker.admits]
        if left <= 0 or not ready or len(tried) >= self._tries:
            why = tries.why or ("no time was left" if left <= 0 else "no target may be asked")
            kind = TimedOut if left <= 0 else TargetFailed
            raise kind(f"{self.name}: {why}", attempts=tries.attempts, cost=tries.cost)
        k, reason = self._best(ready, left)
        tried.append(k)
        retry = self._seen[k].value > left and self._clock() - self._last[k] > self._again
        if retry:
            reason = f"{reason}, tried again after {(self._clock() - self._last[k]) / 1e9:.3g} s without a call"
        told = because(reason, f"after {tries.why}") if tries.why else reason
        return _Pick(k, self.breakers[k].admit(), told, retry, left if left < NO_DEADLINE // 2 else 0)

    def _end(self, pick: "_Pick", started: int, *, ok: bool, late: bool = False) -> None:
        k = pick.target
        now = self._clock()
        took = now - started
        if pick.retry and ok and took < self._seen[k].value:
            self._seen[k], self._expected[k] = self._none_seen(), took
        # What failed at once says nothing about how fast its target answers. What timed out took longer than it was
        # given, nobody knows how much: by twice what there was it is not in time the next time either.
        if ok or late:
            self._seen[k].add(took if ok else max(took, 2 * pick.left))
        self._last[k] = now
        self.breakers[k].record(pick.permit, ok=ok, took=took)

    def _ended(self, pick: "_Pick", started: int, error: VitokError, tries: Tries) -> None:
        wrong = isinstance(error, InvalidInput)
        self._end(pick, started, ok=wrong, late=isinstance(error, TimedOut))
        if wrong:
            raise error
        tries.failed(self.targets[pick.target], started, self._clock(), error)

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
            pick = self._next(tried, tries, deadline - now)
            try:
                scored = asked_here(self._local[pick.target], batch, deadline)
            except (InvalidInput, ServiceError) as error:
                self._ended(pick, now, error, tries)
                continue
            return self._told(pick, tries, now, scored)

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
            pick = self._next(tried, tries, deadline - now)
            limit = deadline
            if deadline < NO_DEADLINE:
                follow = min(self._tries, len(self.targets)) - len(tried)
                limit = now + allowance(deadline, now, after=follow)
                # What is expected to need more than its share gets it all: it was chosen because it fits.
                limit = limit if pick.retry or now + self._latency(pick.target) <= limit else deadline
            try:
                scored = await asked(self.targets[pick.target], batch, limit, self._clock)
            except (InvalidInput, ServiceError) as error:
                self._ended(pick, now, error, tries)
                continue
            except BaseException:
                self.breakers[pick.target].release(pick.permit, took=self._clock() - now)
                raise
            return self._told(pick, tries, now, scored)

    def _told(self, pick: "_Pick", tries: Tries, started: int, scored: Scored) -> Scored:
        self._end(pick, started, ok=True)
        told = labelled(("champion", pick.reason, 1.0), scored)
        return tries.told(told, self.targets[pick.target], started, self._clock())

    async def aclose(self) -> None:
        """Closes what the targets hold open; call it on the event loop that has used them, before that ends."""
        await close_all(self.targets)

    def __repr__(self) -> str:
        return f"CostAware({self.name!r}, {len(self.targets)} targets)"


class _Pick(NamedTuple):
    # A target, its breaker's permit, why it is this one, whether it is tried again after it was too slow, and the
    # nanoseconds that the deadline left; 0 where there is none.
    target: int
    permit: int
    reason: str
    retry: bool
    left: int
