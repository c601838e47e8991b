"""Replicas of a model behind one name: balanced, each with its breaker, outliers left out, retried and hedged."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vitok.errors import InvalidInput, VitokError
from vitok.serving.balance import Balancer, Loads, PowerOfTwo
from vitok.serving.breaker import CLOSED, Breaker, BreakerRules, Nanoseconds
from vitok.serving.outliers import OutlierDetector, OutlierRules
from vitok.serving.retries import NO_DEADLINE, Budget, Hedge, allowance
from vitok.serving.targets import (
    Attempt,
    Batch,
    Scored,
    Target,
    TargetFailed,
    TimedOut,
    all_local,
    asked,
    asked_here,
    because,
    billed,
    close_all,
)

OUTLIERS = OutlierRules()


@dataclass(frozen=True, kw_only=True)
class PoolState:
    """How a pool stands.

    Attributes:
        states: State of each member's breaker, in the order of the pool.
        ejected: Places of the members that are ejected as outliers.
        in_flight: Calls that each member has not answered yet.
        calls: Calls that each member was given.
        requests: How many requests came.
        retries: How many second tries there were.
        hedges: How many second calls were sent before the first had failed.

    Example:
        >>> from vitok.serving.targets import Constant
        >>> print(Pool([Constant(0.5), Constant(0.5)]).state)
        0 requests, 0 retries, 0 hedges; closed: 0 calls, 0 in flight, closed: 0 calls, 0 in flight
    """

    states: tuple[str, ...]
    ejected: tuple[int, ...]
    in_flight: tuple[int, ...]
    calls: tuple[int, ...]
    requests: int
    retries: int
    hedges: int

    def __str__(self) -> str:
        members = ", ".join(
            f"{state}{' (ejected)' if k in self.ejected else ''}: {calls:,} calls, {open_} in flight"
            for k, (state, calls, open_) in enumerate(zip(self.states, self.calls, self.in_flight, strict=True))
        )
        return f"{self.requests:,} requests, {self.retries:,} retries, {self.hedges:,} hedges; {members}"


class Pool:
    """Asks one of several targets that give the same answer, and another one if that fails.

    A try gets as long as the deadline leaves, divided by the tries that may follow. A try elsewhere is made at once
    and only as far as the retry budget goes; never at a member that has been tried. A batch that a member calls wrong
    is not tried again. Not made for several threads.

    A call that a hedge overtakes says something against its member: the other one began later and was answered first.
    Finagle says nothing at all then (its `BackupRequestFilter` marks the loser as ignorable, which its failure accrual
    skips), and so a member that is halted keeps its place as long as there are hedges. Envoy (with
    `hedge_on_per_try_timeout`) reports a timeout to its outlier detection the moment it hedges, also for a call that
    is answered a little later. Here it lies between: only a call that has lost counts, and a hedge that is given up
    because the first call was answered after all does not; the breaker takes it for slow, in the row of failures and
    as a failed probe; the detector ejects for `OutlierRules.consecutive_overtaken` in a row and never beyond its share;
    and of calls that one stall held up together only one counts, the next being one that began after it was lost. For
    the balancer it is a failure, or a halted member would always be the one with nothing in flight.

    Args:
        targets: The members.
        name: What choices call it; by default the first member's.
        balancer: Which member is picked; by default the less busy of two.
        breaker: Rules of each member's breaker.
        outliers: Rules of ejection, Envoy's by default; None where nobody is ejected.
        tries: Most tries of a request, at least 1.
        retries: How many retries there may be; by default 10 % of the requests.
        hedge: When a second call is sent; None for never.
        weights: For `ByWeight`; by default the same for all.
        clock: Nanoseconds.
        seed: Of the jitter of the breakers.

    Attributes:
        targets: The members.
        balancer: Which member is picked.
        tries: Most tries of a request; at most one a member.
        clock: Nanoseconds.
        breakers: One for each member.
        detector: Who ejects; None where nobody does.
        loads: What is known of the members.
        budget: Of the retries.

    Example:
        >>> import numpy as np
        >>> from vitok.serving.targets import LocalModel
        >>> def broken(rows):
        ...     raise OSError("disk")
        >>> pool = Pool([LocalModel("a", broken), LocalModel("b", lambda rows: rows[:, 0])], tries=2)
        >>> scored = asyncio.run(pool.call(Batch(np.array([[0.5]]))))
        >>> scored.values, scored.choice(0).target
        (array([0.5]), 'b')
    """

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        name: str = "",
        balancer: Balancer | None = None,
        breaker: BreakerRules | None = None,
        outliers: OutlierRules | None = OUTLIERS,
        tries: int = 2,
        retries: Budget | None = None,
        hedge: Hedge | None = None,
        weights: Sequence[float] | None = None,
        clock: Nanoseconds = time.perf_counter_ns,
        seed: int = 0,
    ) -> None:
        if not targets:
            raise InvalidInput("targets", targets, "hold at least one")
        if tries < 1:
            raise InvalidInput("tries", tries, "be at least 1")
        self.targets = tuple(targets)
        self.name = name or self.targets[0].name
        self.version = self.targets[0].version
        n = len(self.targets)
        self.breakers = tuple(Breaker(breaker, clock=clock, seed=seed + k) for k in range(n))
        self.detector = OutlierDetector(self.breakers, outliers, clock=clock) if outliers is not None else None
        self.loads = Loads(n, costs=[target.cost for target in self.targets], weights=weights, clock=clock)
        self.budget = retries if retries is not None else Budget()
        self.hedge = hedge
        self.hedges = self.retries = self.requests = 0
        self.balancer = balancer if balancer is not None else PowerOfTwo(seed=seed)
        self.tries = min(tries, n)
        self.clock = clock
        self._lost = [0] * n
        self._local = all_local(self.targets)

    @property
    def cost(self) -> float:
        """What a row is expected to cost: the members' mean."""
        return sum(target.cost for target in self.targets) / len(self.targets)

    @property
    def quality(self) -> float | None:
        """The worst member's quality; None where one of them has none."""
        known = [target.quality for target in self.targets]
        return None if any(quality is None for quality in known) else min(q for q in known if q is not None)

    @property
    def state(self) -> PoolState:
        """How it stands."""
        return PoolState(
            states=tuple(breaker.state for breaker in self.breakers),
            ejected=self.detector.ejected if self.detector is not None else (),
            in_flight=tuple(self.loads.in_flight),
            calls=tuple(self.loads.calls),
            requests=self.requests,
            retries=self.retries,
            hedges=self.hedges,
        )

    async def call(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch by one member.

        Raises:
            InvalidInput: If a member says that the batch is wrong.
            TargetFailed: If no member answers, or none may be asked.
            TimedOut: If the deadline passes.
        """
        request = _Request(self, batch, deadline)
        while True:
            member, permit, reason = request.pick()
            try:
                if self.hedge is not None and self.hedge.delay is not None:
                    scored = await self._hedged(request, member, permit, reason)
                else:
                    scored = await self._ask(request, member, permit, reason)
            except TargetFailed as error:
                request.failed(error)
                continue
            return scored

    def score(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch by one member, where all are of this process; there is no hedging.

        Raises:
            InvalidInput: If a member is not of this process, or says that the batch is wrong.
            TargetFailed: If no member answers, or none may be asked.
        """
        if not self._local:
            raise InvalidInput("targets", self.name, "all be of this process", "Await call() instead")
        request = _Request(self, batch, deadline)
        while True:
            member, permit, reason = request.pick()
            started = self._begin(member)
            try:
                scored = asked_here(self._local[member], batch, deadline)
            except VitokError as error:
                request.failed(self._ended(request, member, permit, started, error))
                continue
            took = self._end(member, permit, started, ok=True)
            return request.told(member, started, took, scored, reason)

    async def aclose(self) -> None:
        """Closes what the targets hold open; call it on the event loop that has used them, before that ends."""
        await close_all(self.targets)

    def _begin(self, member: int) -> int:
        self.loads.start(member)
        return self.clock()

    def _end(self, member: int, permit: int, started: int, *, ok: bool, late: bool = False) -> int:
        took = self.clock() - started
        # What failed at once says nothing about how fast its member answers; what timed out does.
        self.loads.finish(member, took=took if ok or late else None, ok=ok)
        self.breakers[member].record(permit, ok=ok, took=took)
        if self.detector is not None:
            self.detector.record(member, ok=ok, took=took)
        if self.hedge is not None and (ok or late):
            self.hedge.observe(took)
        return took

    def _ended(self, request: "_Request", member: int, permit: int, started: int, error: VitokError) -> TargetFailed:
        if isinstance(error, InvalidInput):
            # The caller's fault: the member is well, and the others would say the same.
            self._end(member, permit, started, ok=True)
            raise error
        late = isinstance(error, TimedOut)
        took = self._end(member, permit, started, ok=False, late=late)
        failed = error if isinstance(error, TargetFailed) else TargetFailed(str(error))
        request.attempts += failed.attempts or (Attempt(self.targets[member].name, took // 1000, str(error)),)
        request.cost += failed.cost
        request.why = f"{request.why}; {error}" if request.why else str(error)
        return failed

    async def _ask(self, request: "_Request", member: int, permit: int, reason: str) -> Scored:
        started = self._begin(member)
        try:
            scored = await asked(self.targets[member], request.batch, request.limit(started), self.clock)
        except VitokError as error:
            raise self._ended(request, member, permit, started, error) from error
        except BaseException:
            # Given up from outside, because a hedge was faster or nobody waits any longer: it took at least so long.
            overtaken = member == request.overtaken
            took = self.clock() - started
            known = took if took > self.loads.latency(member) else None
            self.loads.finish(member, took=known, ok=False if overtaken else None)
            if overtaken and started >= self._lost[member]:
                self._lost[member] = started + took
                self.breakers[member].overtaken(permit)
                if self.detector is not None:
                    self.detector.overtaken(member, took=took)
            else:
                self.breakers[member].release(permit, took=took)
            raise
        took = self._end(member, permit, started, ok=True)
        return request.told(member, started, took, scored, reason)

    async def _hedged(self, request: "_Request", member: int, permit: int, reason: str) -> Scored:
        hedge = self.hedge
        assert hedge is not None  # noqa: S101
        delay = hedge.delay or 0
        first = asyncio.ensure_future(self._ask(request, member, permit, reason))
        running = {first}
        members = {first: member}
        try:
            await asyncio.wait(running, timeout=delay / 1e9)
            if not first.done() and (second := request.second()) is not None:
                self.hedges += 1
                other, its_permit, _ = second
                told = f"a second call, since the first took longer than {delay / 1e6:.3g} ms"
                added = asyncio.ensure_future(self._ask(request, other, its_permit, told))
                running.add(added)
                members[added] = other
            failure: BaseException | None = None
            while running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    error = task.exception()
                    if error is None:
                        if task is not first and not first.done():
                            request.overtaken = member
                        lost = sum(billed(self.targets[members[one]], request.batch) for one in running)
                        scored = task.result()
                        return scored.changed(lambda choice: choice, cost=lost) if lost else scored
                    if failure is None or not isinstance(error, TargetFailed):
                        failure = error
            assert failure is not None  # noqa: S101
            raise failure
        finally:
            for task in running:
                task.cancel()
            if running:
                # The losers give their permits back before anybody else looks.
                await asyncio.gather(*running, return_exceptions=True)

    def __repr__(self) -> str:
        return f"Pool({self.name!r}, {len(self.targets)} members)"


class _Request:
    """One request on its way through a pool."""

    __slots__ = ("attempts", "batch", "cost", "deadline", "overtaken", "pool", "started", "tried", "why")

    def __init__(self, pool: Pool, batch: Batch, deadline: int) -> None:
        self.pool = pool
        self.batch = batch
        self.deadline = deadline
        self.attempts: tuple[Attempt, ...] = ()
        self.cost = 0.0
        self.why = ""
        self.tried: list[int] = []
        self.overtaken = -1
        self.started = pool.clock()
        pool.requests += 1
        pool.budget.deposit()
        if pool.hedge is not None:
            pool.hedge.budget.deposit()

    def pick(self) -> tuple[int, int, str]:
        """Returns a member, its permit, and why it is this one."""
        found = self._pick()
        if found is None:
            states = zip(self.pool.targets, self.pool.breakers, strict=True)
            told = "; ".join(
                (*([self.why] if self.why else []), *(f"{target.name} is {state}" for target, state in states))
            )
            raise TargetFailed(
                f"{self.pool.name}: no member may be asked: {told}", attempts=self.attempts, cost=self.cost
            )
        return found

    def second(self) -> tuple[int, int, str] | None:
        """Returns another member for a hedge, if there is one and the budget allows it."""
        hedge = self.pool.hedge
        if hedge is None or not any(b.admits for k, b in enumerate(self.pool.breakers) if k not in self.tried):
            return None
        return self._pick() if hedge.allow() else None

    def _pick(self) -> tuple[int, int, str] | None:
        pool, tried = self.pool, self.tried
        ready = []
        for k, breaker in enumerate(pool.breakers):
            if k in tried:
                continue
            if breaker.state == CLOSED:
                ready.append(k)
            elif permit := breaker.admit():
                # Before the others, or it would never be found well while they answer.
                tried.append(k)
                return k, permit, "a probe, since its breaker is half open"
        if not ready:
            return None
        member = pool.balancer.pick(ready, pool.loads)
        tried.append(member)
        return member, pool.breakers[member].admit(), pool.balancer.reason(member, pool.loads)

    def limit(self, now: int) -> int:
        """Returns when this try must be over, so that those that may follow still have time."""
        if self.deadline >= NO_DEADLINE:
            return NO_DEADLINE
        return now + allowance(self.deadline, now, after=max(0, self.pool.tries - len(self.tried)))

    def failed(self, error: TargetFailed) -> None:
        """Returns where there is another try, else raises."""
        pool = self.pool
        out_of_time = pool.clock() >= self.deadline
        if not out_of_time and len(self.tried) < pool.tries and pool.budget.take():
            pool.retries += 1
            return
        kind = TimedOut if isinstance(error, TimedOut) else TargetFailed
        raise kind(self.why or str(error), attempts=self.attempts, cost=self.cost) from error

    def told(self, member: int, started: int, took: int, scored: Scored, reason: str) -> Scored:
        """Adds to an answer how it came about."""
        own = (Attempt(self.pool.targets[member].name, took // 1000),)
        reason = f"{reason}; after {self.why}" if self.why else reason
        waited = (started - self.started) // 1000
        return scored.changed(
            lambda c: c._replace(
                reason=because(reason, c.reason),
                attempts=self.attempts + (c.attempts or own),
                waited=waited + c.waited,
            ),
            cost=self.cost,
        )
