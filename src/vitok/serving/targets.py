"""What a route chooses between: a model in this process, a model behind HTTP, rules; all asked in the same way.

A target takes a batch and a deadline and gives scores, each with the choice that led to it. A route is a target too,
so routes stand inside routes: a fallback of a cascade of pools.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitok.errors import InvalidInput, ServiceError, VitokError
from vitok.serving.breaker import Nanoseconds
from vitok.serving.retries import NO_DEADLINE
from vitok.serving.runtime import Runtime

Places = NDArray[np.intp]
ASKED = "it was asked"
"""The reason of a target that chooses nothing."""


class Batch(msgspec.Struct, frozen=True, eq=False):
    """Requests that are answered together.

    Attributes:
        rows: What the models see, one request each along the first axis: a matrix of numbers for a model of rows, an
            array of objects for whatever takes something else.
        units: Key of each request's unit, such as the customer's id; empty where no route needs one.
        fields: Further columns, by name, that rules on content look at.

    Example:
        >>> batch = Batch(np.arange(6.0).reshape(3, 2), units=["a", "b", "c"])
        >>> len(batch), batch.take(np.array([0, 2])).units
        (3, ['a', 'c'])
    """

    rows: np.ndarray
    units: Sequence[str] = ()
    fields: Mapping[str, Sequence[Any] | np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Places) -> "Batch":
        """Returns the requests at some places, in their order."""
        at = places.tolist() if len(self.units) or self.fields else []
        return Batch(
            self.rows[places],
            [self.units[k] for k in at] if len(self.units) else (),
            {
                name: column[places] if isinstance(column, np.ndarray) else [column[k] for k in at]
                for name, column in self.fields.items()
            },
        )


class Attempt(NamedTuple):
    """One try at one target.

    Attributes:
        target: Its name.
        took: Microseconds.
        failure: Why it gave no answer; empty where it did.
    """

    target: str
    took: int
    failure: str = ""

    def __str__(self) -> str:
        return f"{self.target}: {self.failure or 'answered'} after {self.took} us"


class Choice(NamedTuple):
    """Which target answered, and why: `model_version`, `route` and `route_reason` of the decision.

    Attributes:
        target: Name of the target.
        version: Model version that answered, such as `"fraud/3"`.
        route: `"champion"`, `"canary"`, `"shadow"` or `"fallback"`.
        reason: Why it was chosen.
        attempts: All tries, the one that answered last; empty where a model of this process answered at once.
        waited: Microseconds from the call until the try that answered began.
        propensity: Probability with which a random draw chose it, in (0, 1]; 1 where nothing was drawn.
    """

    target: str
    version: str
    route: str = "champion"
    reason: str = ""
    attempts: tuple[Attempt, ...] = ()
    waited: int = 0
    propensity: float = 1.0

    def __str__(self) -> str:
        tried = f"; {len(self.attempts)} tries, waited {self.waited} us" if len(self.attempts) > 1 else ""
        return f"{self.target} as {self.route}: {self.reason}{tried}"


class Scored(msgspec.Struct, frozen=True, eq=False):
    """The answer to a batch.

    Attributes:
        values: One answer a request along the first axis.
        choices: The choices that were made, at least one.
        places: Which of them each request got, shape (n,); None where all got the first.
        cost: What it cost altogether, failed and second calls with it, in the unit of the targets' `cost`.
    """

    values: np.ndarray
    choices: tuple[Choice, ...]
    places: Places | None = None
    cost: float = 0.0

    def __len__(self) -> int:
        return len(self.values)

    def choice(self, row: int) -> Choice:
        """Returns the choice of one request."""
        return self.choices[0] if self.places is None else self.choices[self.places[row]]

    def changed(self, change: Callable[[Choice], Choice], *, cost: float = 0.0) -> "Scored":
        """Returns it with each choice changed, and a further cost added."""
        choices = tuple(change(choice) for choice in self.choices)
        return Scored(self.values, choices, self.places, self.cost + cost)


def merged(n: int, parts: Sequence[tuple[Places, Scored]]) -> Scored:
    """Puts the answers to the parts of a batch into one.

    Args:
        n: How many requests the batch has.
        parts: Places in the batch, and the answers to the requests there; together they must be all of it.

    Raises:
        ServiceError: If the targets give answers of different shapes, or another number of them.
    """
    for at, scored in parts:
        if len(scored.values) != len(at):
            # One answer for several requests would else be spread over all of them.
            raise ServiceError(f"{scored.choices[0].target}: {len(scored.values)} answers for {len(at)} rows")
    shapes = {scored.values.shape[1:] for _, scored in parts}
    if len(shapes) != 1:
        raise ServiceError(f"the targets of a route must give answers of one shape, got {sorted(map(str, shapes))}")
    values = np.empty((n, *shapes.pop()), np.result_type(*(scored.values.dtype for _, scored in parts)))
    places = np.empty(n, np.intp)
    choices: list[Choice] = []
    for at, scored in parts:
        values[at] = scored.values
        places[at] = len(choices) if scored.places is None else scored.places + len(choices)
        choices.extend(scored.choices)
    return Scored(values, tuple(choices), places, sum(scored.cost for _, scored in parts))


def part(scored: Scored, places: Places) -> Scored:
    """Returns the answers at some places; the cost stays with the whole."""
    return Scored(scored.values[places], scored.choices, None if scored.places is None else scored.places[places])


def labelled(told: tuple[str, str, float], scored: Scored) -> Scored:
    """Adds what a route says of a choice.

    Args:
        told: The route, why it was taken, and the probability with which it was drawn.
        scored: The answer of the target.
    """
    route, reason, propensity = told

    def change(choice: Choice) -> Choice:
        return choice._replace(
            # What fell back inside has fallen back, whatever it was meant to be.
            route=choice.route if choice.route == "fallback" else route,
            reason=because(reason, choice.reason),
            propensity=propensity * choice.propensity,
        )

    return scored.changed(change)


class TargetFailed(ServiceError):  # noqa: N818
    """A target gave no answer.

    Attributes:
        attempts: What was tried.
        cost: What it cost all the same.
    """

    def __init__(self, reason: str, *, attempts: tuple[Attempt, ...] = (), cost: float = 0.0) -> None:
        self.attempts = attempts
        self.cost = cost
        super().__init__(reason)


class TimedOut(TargetFailed):
    """A target gave no answer in time."""


@runtime_checkable
class Target(Protocol):
    """Something that answers batches: a model, a remote model, a provider, a route.

    Attributes:
        name: What choices and errors call it.
        version: Version of the model, such as `"fraud/3"`.
        cost: What a row is expected to cost, in whatever unit the targets of a route share.
        quality: How good it is by an evaluation, larger is better; None where nobody has measured.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> str: ...  # noqa: D102
    @property
    def cost(self) -> float: ...  # noqa: D102
    @property
    def quality(self) -> float | None: ...  # noqa: D102

    async def call(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch.

        Args:
            batch: The requests.
            deadline: When the answer is worth nothing any more, in nanoseconds of `time.perf_counter_ns`.

        Raises:
            InvalidInput: If the batch is not what the target takes; the target itself is well.
            ServiceError: If it fails, or the deadline passes.
        """
        ...


@runtime_checkable
class LocalTarget(Target, Protocol):
    """A target that answers in this process without waiting for anything."""

    def score(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch, as `call`."""
        ...


def all_local(targets: Sequence[Target]) -> tuple[LocalTarget, ...]:
    """Returns the targets where all are of this process, else none.

    To ask a target what it can do takes microseconds, so a route asks once.
    """
    found = tuple(target for target in targets if isinstance(target, LocalTarget))
    return found if len(found) == len(targets) else ()


@runtime_checkable
class Closing(Protocol):
    """A target that holds something open, such as connections, or that has targets which do."""

    async def aclose(self) -> None:
        """Closes it; call it on the event loop that has used it, before that ends."""
        ...


async def close_all(targets: Sequence[Target]) -> None:
    """Closes those of the targets that hold something open."""
    for target in targets:
        if isinstance(target, Closing):
            await target.aclose()


class LocalModel:
    """A model of this process. `score` may be called by several threads.

    Args:
        name: What choices and errors call it.
        function: From rows, shape (n, ...), to answers, shape (n, ...), such as `Runtime.score`.
        version: By default the name.
        cost: What a row costs; by default the processor seconds that it has been measured to take, 0 before.
        quality: How good it is; larger is better.
        executor: Where `call` runs it; by default on the event loop, which suits what takes less than a millisecond.
        clock: Of the deadlines.

    Example:
        >>> model = LocalModel("sum", lambda rows: rows.sum(axis=1), version="sum/1", cost=1.0)
        >>> scored = model.score(Batch(np.array([[1.0, 2.0]])))
        >>> scored.values, scored.choice(0).version, scored.cost
        (array([3.]), 'sum/1', 1.0)
    """

    def __init__(
        self,
        name: str,
        function: Callable[[np.ndarray], np.ndarray],
        *,
        version: str = "",
        cost: float | None = None,
        quality: float | None = None,
        executor: Executor | None = None,
        clock: Nanoseconds = time.perf_counter_ns,
    ) -> None:
        self.name = name
        self.version = version or name
        self.quality = quality
        self._function = function
        self._cost = cost
        self._executor = executor
        self._clock = clock
        self._measured = (0, 0)
        self._choices = (Choice(name, self.version, reason=ASKED),)

    @classmethod
    def of(
        cls,
        runtime: Runtime,
        *,
        name: str = "",
        cost: float | None = None,
        quality: float | None = None,
        executor: Executor | None = None,
    ) -> "LocalModel":
        """Makes a target of a runtime; rows are converted to the type that it takes."""

        def function(rows: np.ndarray) -> np.ndarray:
            return runtime.score(rows.astype(runtime.dtype, copy=False))

        version = runtime.version
        return cls(name or version, function, version=version, cost=cost, quality=quality, executor=executor)

    @property
    def cost(self) -> float:
        """What a row costs."""
        if self._cost is not None:
            return self._cost
        rows, spent = self._measured
        return spent / rows / 1e9 if rows else 0.0

    def score(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch.

        Raises:
            TimedOut: If the deadline has passed before it began.
            ServiceError: If the function fails, or gives another number of answers.
        """
        if self._clock() >= deadline:
            raise TimedOut(f"{self.name}: no time was left")
        n = len(batch)
        started = time.thread_time_ns()
        try:
            values = np.asarray(self._function(batch.rows))
        except (InvalidInput, ServiceError):
            raise
        except Exception as error:  # whatever the model's own code raises
            raise _failed(self.name, error) from error
        if values.shape[:1] != (n,):
            raise TargetFailed(f"{self.name}: answers have the shape {values.shape} for {n} rows")
        spent = time.thread_time_ns() - started
        rows, before = self._measured
        self._measured = (rows + n, before + spent)
        return Scored(values, self._choices, None, spent / 1e9 if self._cost is None else self._cost * n)

    async def call(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch, in the executor where there is one."""
        if self._executor is None:
            return self.score(batch, deadline)
        running = asyncio.get_running_loop().run_in_executor(self._executor, self.score, batch, deadline)
        with _until(self.name, deadline, self._clock()):
            async with asyncio.timeout(seconds_left(deadline, self._clock())):
                return await running

    def __repr__(self) -> str:
        return f"LocalModel({self.name!r}, version={self.version!r})"


class Constant:
    """The same answer to everything: where a chain of fallbacks ends, since it cannot fail.

    Args:
        value: The answer.
        name: What choices call it.
        version: What the decision's `model_version` says.

    Example:
        >>> Constant(0.5).score(Batch(np.zeros((2, 3)))).values
        array([0.5, 0.5])
    """

    cost = 0.0

    def __init__(self, value: float, *, name: str = "constant", version: str = "rules") -> None:
        if not math.isfinite(value):
            raise InvalidInput("value", value, "be finite")
        self.name = name
        self.version = version
        self.quality: float | None = None
        self._value = float(value)
        self._choices = (Choice(name, version, reason=f"the answer is always {value:g}"),)

    def score(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:  # noqa: ARG002 - it needs no time
        """Answers a batch, whatever the time."""
        return Scored(np.full(len(batch), self._value), self._choices)

    async def call(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch, whatever the time."""
        return self.score(batch, deadline)


class Rules:
    """Rules written by hand, which give a constant where they fail themselves: the end of a chain of fallbacks.

    Args:
        rule: From a batch to one answer a request, shape (n,).
        otherwise: The answer where the rule raises, gives something else, or gives what is not finite for a request.
        name: What choices call it.
        version: What the decision's `model_version` says.

    Attributes:
        failed: How many batches there were for which the rule gave no answer, or not for all requests.

    Example:
        >>> rules = Rules(lambda batch: (batch.rows[:, 0] > 200) * 0.9, otherwise=0.5)
        >>> rules.score(Batch(np.array([[950.0], [10.0]]))).values
        array([0.9, 0. ])
    """

    cost = 0.0

    def __init__(
        self,
        rule: Callable[[Batch], np.ndarray],
        *,
        otherwise: float,
        name: str = "rules",
        version: str = "rules",
    ) -> None:
        self.name = name
        self.version = version
        self.quality: float | None = None
        self.failed = 0
        self._rule = rule
        self._otherwise = Constant(otherwise, name=name, version=version)
        self._choices = (Choice(name, version, reason="the rules answered"),)

    def score(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch, whatever the time."""
        try:
            values = np.asarray(self._rule(batch), dtype=np.float64)
        except Exception as error:  # noqa: BLE001 - the last answer must not depend on what the rule raises
            return self._instead(batch, deadline, repr(error))
        if values.shape != (len(batch),):
            return self._instead(batch, deadline, f"answers of the shape {values.shape}")
        nothing = unanswered(values)
        if not len(nothing):
            return Scored(values, self._choices)
        without = self._instead(batch.take(nothing), deadline, "no finite number")
        if len(nothing) == len(values):
            return without
        well = np.flatnonzero(np.isfinite(values))
        return merged(len(values), [(well, Scored(values[well], self._choices)), (nothing, without)])

    def _instead(self, batch: Batch, deadline: int, failure: str) -> Scored:
        self.failed += 1
        told = f"the rules failed ({failure}), "
        return self._otherwise.score(batch, deadline).changed(
            lambda c: c._replace(route="fallback", reason=told + c.reason)
        )

    async def call(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch, whatever the time."""
        return self.score(batch, deadline)


CERTAIN = (Constant, Rules)
"""Targets that cannot fail."""


def because(outer: str, inner: str) -> str:
    """Returns the reason of a route and that of the target it chose, unless that one only says that it was asked.

    Example:
        >>> because("drawn by weight", ASKED), because("drawn by weight", "the fastest")
        ('drawn by weight', 'drawn by weight; the fastest')
    """
    return outer if inner == ASKED else f"{outer}; {inner}"


def seconds_left(deadline: int, now: int) -> float | None:
    """Returns the seconds until a deadline, at least 0; None where there is none."""
    return None if deadline >= NO_DEADLINE else max(0, deadline - now) / 1e9


@contextlib.contextmanager
def _until(name: str, deadline: int, now: int) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        left = max(0, deadline - now) / 1e6
        raise TimedOut(f"{name}: no answer within {left:.3g} ms") from None


def unanswered(values: np.ndarray) -> Places:
    """Returns the places of the requests that have no answer: a number that is not finite, one column of many enough.

    Example:
        >>> unanswered(np.array([0.5, np.nan, np.inf])).tolist()
        [1, 2]
    """
    if values.dtype.kind != "f":
        return _NOBODY
    finite = np.isfinite(values)
    if finite.all():
        return _NOBODY
    return np.flatnonzero(~finite.reshape(len(values), -1).all(axis=1))


_NOBODY: Places = np.empty(0, np.intp)


def billed(target: Target, batch: Batch) -> float:
    """Returns what a call costs that was sent and then given up: its price where a target is paid by the call.

    Whether the provider has worked on it nobody here knows, so it counts. A model of this process has no `billed`: the
    time that it has taken is measured.
    """
    return target.cost * len(batch) if getattr(target, "billed", False) else 0.0


def _failed(name: str, error: Exception) -> TargetFailed:
    return TargetFailed(f"{name}: {error if isinstance(error, VitokError) else repr(error)}")


def _kept(target: Target, batch: Batch, scored: Scored) -> Scored:
    if len(scored.values) != len(batch):
        raise TargetFailed(f"{target.name}: {len(scored.values)} answers for {len(batch)} rows", cost=scored.cost)
    return scored


def asked_here(target: LocalTarget, batch: Batch, deadline: int) -> Scored:
    """Asks a target of this process, as `asked`; nothing can cut it off.

    Raises:
        InvalidInput: As the target.
        ServiceError: As the target; also where it gives another number of answers or raises something else.
    """
    try:
        scored = target.score(batch, deadline)
    except (InvalidInput, ServiceError):
        raise
    except Exception as error:  # a target of the caller's own may raise anything
        raise _failed(target.name, error) from error
    return _kept(target, batch, scored)


async def asked(target: Target, batch: Batch, deadline: int, clock: Nanoseconds, *, grace: int = 0) -> Scored:
    """Asks a target and sees to it that it keeps its promise: an answer for each request, in time, or a known error.

    Args:
        target: The target.
        batch: The requests.
        deadline: What it is told.
        clock: Of the deadline.
        grace: Nanoseconds after the deadline at which it is cut off. A route needs some, since it counts a timeout
            itself and must not be cancelled in the middle of that.

    Raises:
        InvalidInput: As the target.
        ServiceError: As the target; also where it gives another number of answers or raises something else.
        TimedOut: If the deadline passes.
    """
    now = clock()
    if now >= deadline:
        raise TimedOut(f"{target.name}: no time was left")
    cost = billed(target, batch)
    try:
        if deadline >= NO_DEADLINE or isinstance(target, CERTAIN):
            scored = await target.call(batch, deadline)
        else:
            async with asyncio.timeout((deadline + grace - now) / 1e9):
                scored = await target.call(batch, deadline)
    except TimeoutError as error:
        if deadline >= NO_DEADLINE:
            # Its own, since nobody here has cut it off.
            raise TimedOut(f"{target.name}: {error!r}", cost=cost) from None
        raise TimedOut(f"{target.name}: no answer within {(deadline - now) / 1e6:.3g} ms", cost=cost) from None
    except (InvalidInput, ServiceError):
        raise
    except Exception as error:  # a target of the caller's own may raise anything
        raise _failed(target.name, error) from error
    return _kept(target, batch, scored)
