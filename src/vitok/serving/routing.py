"""Routes that choose for each request: by weight, by unit, by content. A batch is cut into a group for each target.

A route is a target. Where one group's target fails the whole batch has no answer; so chains of fallbacks belong inside
these routes, where they catch what fails in their own group. Where all targets are of this process, `score` answers
without an event loop.
"""

import abc
import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitok.contracts.predicates import Node, UnsupportedError, parse
from vitok.errors import InvalidInput, ServiceError, VitokError
from vitok.serving.balance import checked
from vitok.serving.breaker import Nanoseconds
from vitok.serving.paid_calls import dearer, paid
from vitok.serving.retries import NO_DEADLINE
from vitok.serving.routes import Route
from vitok.serving.targets import (
    Batch,
    Places,
    Scored,
    Target,
    all_local,
    asked,
    asked_here,
    close_all,
    labelled,
    merged,
)

_FEW = 48
# Routes below count their own timeouts, and must not be cancelled in the middle of that.
_GRACE = 2_000_000


class Split:
    """Which target each request of a batch goes to.

    Attributes:
        places: Place of the target for each request, shape (n,).
        told: For each target the route, the reason and the propensity of what goes there.
    """

    __slots__ = ("places", "told")

    def __init__(self, places: Places, told: Sequence[tuple[str, str, float]]) -> None:
        self.places = places
        self.told = tuple(told)

    def groups(self) -> list[tuple[int, Places]]:
        """Returns the targets that got something, each with the places of its requests, in order."""
        places = self.places
        n = len(places)
        if n and (places[0] == places).all():
            return [(int(places[0]), np.arange(n))]
        order = np.argsort(places, kind="stable")
        counts = np.bincount(places, minlength=len(self.told))
        ends = np.cumsum(counts)
        return [(k, order[ends[k] - counts[k] : ends[k]]) for k in np.flatnonzero(counts).tolist()]


class _Choosing(abc.ABC):
    """A route that chooses a target for each request."""

    def __init__(self, name: str, targets: Sequence[Target], clock: Nanoseconds) -> None:
        if not targets:
            raise InvalidInput("targets", targets, "hold at least one")
        self.name = name
        self._clock = clock
        self.targets = tuple(targets)
        self._local = all_local(targets)

    @property
    def version(self) -> str:
        """Versions of the targets."""
        return " | ".join(dict.fromkeys(target.version for target in self.targets))

    @property
    def cost(self) -> float:
        """What a row is expected to cost, by the shares that the targets get."""
        return sum(share * target.cost for share, target in zip(self._shares(), self.targets, strict=True))

    @property
    def quality(self) -> float | None:
        """The targets' quality, by the shares that they get; None where one that gets any has none."""
        total = 0.0
        for share, target in zip(self._shares(), self.targets, strict=True):
            if share:
                if target.quality is None:
                    return None
                total += share * target.quality
        return total

    def _shares(self) -> Sequence[float]:
        return [1 / len(self.targets)] * len(self.targets)

    @abc.abstractmethod
    def choose(self, batch: Batch) -> Split:
        """Returns which target each request goes to."""

    def score(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch, where all targets are of this process.

        Raises:
            InvalidInput: If a target is not, or says that the batch is wrong.
            ServiceError: As the targets.
        """
        if not self._local:
            raise InvalidInput("targets", self.name, "all be of this process", "Await call() instead")
        split = self.choose(batch)
        groups = split.groups()
        if len(groups) < 2:
            k = groups[0][0] if groups else 0
            return labelled(split.told[k], asked_here(self._local[k], batch, deadline))
        parts = [
            (at, labelled(split.told[k], asked_here(self._local[k], batch.take(at), deadline))) for k, at in groups
        ]
        return merged(len(batch), parts)

    async def call(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch; the targets are asked at the same time.

        Raises:
            InvalidInput: If a target says that the batch is wrong.
            ServiceError: As the targets.
        """
        split = self.choose(batch)
        groups = split.groups()
        if len(groups) < 2:
            k = groups[0][0] if groups else 0
            return labelled(split.told[k], await self._asked(k, batch, deadline))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._caught(k, batch.take(at), deadline)) for k, at in groups]
        parts, failures, cost = [], list[ServiceError](), 0.0
        for (k, at), task in zip(groups, tasks, strict=True):
            found = task.result()
            if isinstance(found, ServiceError):
                failures.append(found)
            elif isinstance(found, VitokError):
                raise found
            else:
                parts.append((at, labelled(split.told[k], found)))
                cost += found.cost
        if failures:
            first, *others = failures
            raise dearer(first, cost + sum(map(paid, others)))
        return merged(len(batch), parts)

    async def _asked(self, k: int, batch: Batch, deadline: int) -> Scored:
        return await asked(self.targets[k], batch, deadline, self._clock, grace=_GRACE)

    async def _caught(self, k: int, batch: Batch, deadline: int) -> Scored | VitokError:
        # A task group wraps what its tasks raise; a caller wants the error itself.
        try:
            return await self._asked(k, batch, deadline)
        except VitokError as error:
            return error

    async def aclose(self) -> None:
        """Closes what the targets hold open; call it on the event loop that has used them, before that ends."""
        await close_all(self.targets)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self.targets)} targets)"


class Weighted(_Choosing):
    """Draws a target for each request, by weight; what was drawn carries its probability.

    A unit may meet another target each time; `Canary` keeps it where it is.

    Args:
        targets: The targets.
        weights: One each, at least 0, not all 0.
        name: What errors call it.
        seed: Of the draws.
        clock: Of the deadlines.

    Raises:
        InvalidInput: If targets and weights do not fit together.

    Example:
        >>> from vitok.serving.targets import Constant
        >>> route = Weighted([Constant(0.0, name="a"), Constant(1.0, name="b")], weights=[3, 1])
        >>> scored = route.score(Batch(np.zeros((1000, 1))))
        >>> int(scored.values.sum())
        267
        >>> print(scored.choices[1].target, scored.choices[1].propensity)
        b 0.25
    """

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        weights: Sequence[float],
        name: str = "weighted",
        seed: int = 0,
        clock: Nanoseconds = time.perf_counter_ns,
    ) -> None:
        super().__init__(name, targets, clock)
        weights = checked("weights", weights, len(self.targets))
        total = sum(weights)
        if total <= 0:
            raise InvalidInput("weights", list(weights), "not all be 0")
        self._weights = [weight / total for weight in weights]
        # By the last sum, so that rounding gives nothing to a last target of weight 0.
        sums = np.cumsum(weights)
        self._sums = sums[:-1] / sums[-1]
        self._generator = np.random.default_rng(seed)
        self._told = [
            ("champion", f"drawn by its weight of {weight:g} in {total:g}", share)
            for weight, share in zip(weights, self._weights, strict=True)
        ]

    def _shares(self) -> Sequence[float]:
        return self._weights

    def choose(self, batch: Batch) -> Split:
        """Draws a target for each request."""
        return Split(np.searchsorted(self._sums, self._generator.random(len(batch)), side="right"), self._told)


class Canary(_Choosing):
    """Gives each unit to the champion or the canary, always the same one; a batch must have units.

    Args:
        route: Says which unit goes where.
        champion: Answers for the route's champion.
        canary: Answers for its canary.
        name: What errors call it.
        clock: Of the deadlines.

    Raises:
        InvalidInput: If the targets' versions are not those of the route.

    Example:
        >>> from vitok.serving.targets import Constant
        >>> split = Route(champion="fraud/3", canary="fraud/4", share=0.5)
        >>> route = Canary(split, Constant(0.0, version="fraud/3"), Constant(1.0, version="fraud/4"))
        >>> print(route.score(Batch(np.zeros((1, 2)), units=["17"])).choice(0))
        constant as canary: hash of the unit is within the 50 % of the canary fraud/4; the answer is always 1
    """

    def __init__(
        self,
        route: Route,
        champion: Target,
        canary: Target,
        *,
        name: str = "canary",
        clock: Nanoseconds = time.perf_counter_ns,
    ) -> None:
        super().__init__(name, [champion, canary], clock)
        for field, target, wanted in (("champion", champion, route.champion), ("canary", canary, route.canary)):
            if target.version != wanted:
                raise InvalidInput(field, target.version, f"be of the version {wanted}, which the route names")
        self.route = route
        both = {assignment.route: assignment.reason for assignment in route._both}  # noqa: SLF001 - its other half
        self._told = [
            ("champion", both.get("champion", ""), 1.0),
            ("canary", both.get("canary", "there is no canary"), 1.0),
        ]

    def _shares(self) -> Sequence[float]:
        return [1 - self.route.share, self.route.share]

    def choose(self, batch: Batch) -> Split:
        """Looks up each unit.

        Raises:
            InvalidInput: If the batch has no units.
        """
        n = len(batch)
        if len(batch.units) != n:
            raise InvalidInput("units", len(batch.units), f"be {n}, one for each request", "A canary is by unit")
        assign = self.route.assign
        return Split(np.fromiter((assign(unit).route == "canary" for unit in batch.units), np.intp, n), self._told)


class ContentRules(_Choosing):
    """Gives each request to the first target whose condition it meets, and the rest to another.

    Conditions are SQL on one row, read once; see `vitok.contracts.predicates`. A missing value makes a condition
    unknown, and what is unknown is not met; NaN counts as missing.

    Args:
        rules: Conditions with their targets, in order.
        otherwise: Answers what meets none.
        types: Type of each field that conditions name: `"number"`, `"integer"`, `"string"`, `"boolean"`, `"date"` or
            `"timestamp"`. Times are microseconds, dates are days since 1970.
        name: What errors call it.
        clock: Of the deadlines.

    Raises:
        InvalidInput: If a condition cannot be read.

    Example:
        >>> from vitok.serving.targets import Constant
        >>> route = ContentRules(
        ...     [("amount > 1000 OR country = 'NG'", Constant(1.0, name="thorough"))],
        ...     otherwise=Constant(0.0, name="quick"),
        ...     types={"amount": "number", "country": "string"},
        ... )
        >>> batch = Batch(np.zeros((3, 1)), fields={"amount": [5.0, 5000.0, None], "country": ["DE", "DE", "NG"]})
        >>> route.score(batch).values
        array([0., 1., 1.])
    """

    def __init__(
        self,
        rules: Sequence[tuple[str, Target]],
        *,
        otherwise: Target,
        types: Mapping[str, str],
        name: str = "content rules",
        clock: Nanoseconds = time.perf_counter_ns,
    ) -> None:
        super().__init__(name, [*(target for _, target in rules), otherwise], clock)
        self._nodes: list[Node] = []
        for k, (condition, _) in enumerate(rules):
            try:
                self._nodes.append(parse(condition, types))
            except UnsupportedError as error:
                raise InvalidInput(f"rules[{k}]", condition, f"be a condition on the fields: {error}") from None
        self._types = dict(types)
        self._named = tuple(dict.fromkeys(field for node in self._nodes for field in node.fields))
        told = [("champion", f"it meets {condition!r}", 1.0) for condition, _ in rules]
        self._told = [*told, ("champion", "it meets no condition", 1.0)]

    def choose(self, batch: Batch) -> Split:
        """Runs the conditions.

        Raises:
            InvalidInput: If the batch lacks a field, or a value has another type than said.
        """
        n = len(batch)
        for field in self._named:
            if field not in batch.fields:
                raise InvalidInput("fields", sorted(batch.fields), f"hold {field!r}, which a condition names")
            if len(batch.fields[field]) != n:
                raise InvalidInput(f"fields[{field!r}]", len(batch.fields[field]), f"be {n} values")
        return Split(self._row_by_row(batch) if n <= _FEW else self._by_columns(batch), self._told)

    def _row_by_row(self, batch: Batch) -> Places:
        # A few rows cost less one by one than the start of a query.
        columns = {name: _plain(batch.fields[name]) for name in self._named}
        places = np.full(len(batch), len(self._nodes), np.intp)
        for row in range(len(batch)):
            values = {name: column[row] for name, column in columns.items()}
            for k, node in enumerate(self._nodes):
                try:
                    met = node.value(values)
                except (TypeError, ValueError, AttributeError) as error:
                    raise InvalidInput("fields", values, f"have the types of the conditions: {error}") from None
                if met:
                    places[row] = k
                    break
        return places

    def _by_columns(self, batch: Batch) -> Places:
        import polars as pl

        kinds = {"number": pl.Float64, "integer": pl.Int64, "string": pl.String, "boolean": pl.Boolean}
        kinds |= {"date": pl.Int64, "timestamp": pl.Int64}
        try:
            frame = pl.DataFrame(
                {name: pl.Series(name, _plain(batch.fields[name]), kinds[self._types[name]]) for name in self._named}
            )
            columns = {name: pl.col(name) for name in self._named}
            met = frame.select(
                node.column(columns).fill_null(value=False).alias(str(k)) for k, node in enumerate(self._nodes)
            )
        except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
            raise InvalidInput("fields", list(self._named), f"have the types of the conditions: {error}") from None
        places = np.full(len(batch), len(self._nodes), np.intp)
        for k in range(len(self._nodes) - 1, -1, -1):
            # A condition without a field is one value for all.
            places[np.broadcast_to(met[str(k)].to_numpy(), len(batch))] = k
        return places


def _plain(column: Sequence[Any] | np.ndarray) -> list[Any]:
    values = column.tolist() if isinstance(column, np.ndarray) else column
    return [None if value is None or value != value else value for value in values]
