"""What a feature is: entities, sources, views over windows, on-demand functions, and the set that a model sees."""

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from vitok.clock import DAY, HOUR, MINUTE, duration
from vitok.errors import InvalidInput

CURRENT_COLUMNS = ("event_time",)


@dataclasses.dataclass(frozen=True)
class Entity:
    """Who a feature is about.

    Args:
        name: Singular noun, such as `"customer"`.
        key: Column that holds its key, such as `"customer_id"`.
    """

    name: str
    key: str


@dataclasses.dataclass(frozen=True)
class Source:
    """Where events come from: a stream or table of timestamped facts.

    Args:
        name: Such as `"transactions"`.
        event_id: Column that identifies an event; a second event of the same id changes nothing.
        event_time: Column with the time the fact became true (and known).
    """

    name: str
    event_id: str
    event_time: str = "event_time"


@dataclasses.dataclass(frozen=True)
class Window:
    """A stretch of time that ends at the moment of the question: `[floor_hop(t - span), t)`.

    The head is exact: an event counts at once. The tail moves in steps of the hop (a sawtooth window), so that a
    stream needs to keep one number for each hop rather than every event. `hop=1` (a microsecond) makes both exact.

    Args:
        span: Length in microseconds.
        hop: Step of the tail in microseconds.

    Example:
        >>> Window.of("7d")
        Window(7d, hop 1h)
        >>> Window.of("7d").start(8 * DAY + 90 * MINUTE) == DAY + 60 * MINUTE
        True
    """

    span: int
    hop: int

    @classmethod
    def of(cls, span: str | int, *, exact: bool = False) -> Self:
        """Makes a window with the usual hop: 5 min up to 12 h, 1 h up to 12 d, else 1 d."""
        length = duration(span)
        if exact:
            return cls(length, 1)
        hop = 5 * MINUTE if length <= 12 * HOUR else HOUR if length <= 12 * DAY else DAY
        if length % MINUTE:
            raise InvalidInput("window", span, "be whole minutes", "Ask for exact=True to have any length.")
        return cls(length, hop)

    def start(self, time: int) -> int:
        """Returns the first microsecond that the window covers when asked at `time`."""
        return (time - self.span) // self.hop * self.hop

    @property
    def label(self) -> str:
        """Short name, as in feature names: `"15m"`, `"6h"`, `"30d"`."""
        for unit, letter in ((DAY, "d"), (HOUR, "h"), (MINUTE, "m"), (1_000_000, "s")):
            if self.span % unit == 0:
                return f"{self.span // unit}{letter}"
        return f"{self.span}us"

    def __repr__(self) -> str:
        """Shows span and hop in words."""
        hop = "exact" if self.hop == 1 else f"hop {Window(self.hop, 1).label}"
        return f"Window({self.label}, {hop})"


@dataclasses.dataclass(frozen=True)
class _Aggregation:
    column: str
    over: tuple[str, ...]
    name: str = ""

    kind = ""

    @property
    def title(self) -> str:
        return self.name or (f"{self.column}_{self.kind}" if self.column else self.kind)


class Count(_Aggregation):
    """How many events.

    Args:
        over: Lengths of the windows, such as `("1h", "7d")`.
        name: Middle part of the feature's name; `"count"` by default.
    """

    kind = "count"

    def __init__(self, over: tuple[str, ...], *, name: str = "") -> None:
        super().__init__("", tuple(over), name)


class Sum(_Aggregation):
    """Sum of a column; 0 where there is no event."""

    kind = "sum"


class Mean(_Aggregation):
    """Mean of a column; NaN where there is no event. The mean of a 0/1 column is its rate."""

    kind = "mean"


class Distinct(_Aggregation):
    """How many different values a column takes."""

    kind = "distinct"


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Features of one entity from one source.

    Args:
        name: First part of the names of its features.
        entity: Who they are about.
        source: Which events are aggregated.
        aggregations: What is computed over which windows.
        include_current: Whether the event that asks is part of its own windows.
        exact: Whether the tails of the windows are exact to the microsecond rather than to the hop.
        owner: Who answers for it.
        description: What it says, in a sentence.

    Raises:
        InvalidInput: If two features would have the same name, or a window's hops do not divide each other.

    Example:
        >>> view = View(
        ...     name="customer",
        ...     entity=Entity("customer", "customer_id"),
        ...     source=Source("transactions", "transaction_id"),
        ...     aggregations=(Count(("1h", "1d")), Mean("amount", ("7d",))),
        ... )
        >>> view.feature_names
        ('customer_count_1h', 'customer_count_1d', 'customer_amount_mean_7d')
    """

    name: str
    entity: Entity
    source: Source
    aggregations: tuple[_Aggregation, ...]
    include_current: bool = False
    exact: bool = False
    owner: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        """Checks what the types cannot say."""
        if not self.aggregations or any(not item.over for item in self.aggregations):
            raise InvalidInput(f"view {self.name!r}: aggregations", self.aggregations, "hold a window each")
        names = self.feature_names
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InvalidInput(f"view {self.name!r}: feature names", twice, "be unique", "Give one of them a name=.")

    @functools.cached_property
    def windows(self) -> tuple[Window, ...]:
        """All windows of the view, shortest first, each once."""
        spans = {Window.of(span, exact=self.exact) for item in self.aggregations for span in item.over}
        return tuple(sorted(spans, key=lambda window: window.span))

    @functools.cached_property
    def value_columns(self) -> tuple[str, ...]:
        """Columns whose sums are kept."""
        return tuple(dict.fromkeys(item.column for item in self.aggregations if item.kind in {"sum", "mean"}))

    @functools.cached_property
    def distinct_columns(self) -> tuple[str, ...]:
        """Columns whose different values are counted."""
        return tuple(dict.fromkeys(item.column for item in self.aggregations if item.kind == "distinct"))

    @functools.cached_property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features, in the order in which they are computed."""
        return tuple(
            f"{self.name}_{item.title}_{Window.of(span, exact=self.exact).label}"
            for item in self.aggregations
            for span in item.over
        )

    def plan(self) -> np.ndarray:
        """Compiles the features to rows of (kind, window, column) for the kernels, shape (features, 3).

        Kinds are 0 count, 1 sum, 2 mean, 3 distinct.
        """
        windows = {window.span: index for index, window in enumerate(self.windows)}
        kinds = {"count": 0, "sum": 1, "mean": 2, "distinct": 3}
        rows: list[tuple[int, int, int]] = []
        for item in self.aggregations:
            columns = self.distinct_columns if item.kind == "distinct" else self.value_columns
            column = columns.index(item.column) if item.column else 0
            rows.extend((kinds[item.kind], windows[duration(span)], column) for span in item.over)
        return np.array(rows, dtype=np.int64).reshape(-1, 3)

    def bounds(self) -> np.ndarray:
        """Returns (span, hop) of each window in microseconds, shape (windows, 2)."""
        return np.array([(window.span, window.hop) for window in self.windows], dtype=np.int64)

    def describe(self) -> dict[str, Any]:
        """Returns everything that gives the features their values, ready for JSON and for the content hash."""
        return {
            "name": self.name,
            "entity": dataclasses.asdict(self.entity),
            "source": dataclasses.asdict(self.source),
            "aggregations": [
                {"kind": item.kind, "column": item.column, "over": list(item.over), "name": item.title}
                for item in self.aggregations
            ],
            "include_current": self.include_current,
            "exact": self.exact,
        }


@dataclasses.dataclass(frozen=True)
class OnDemand:
    """A feature computed from the request and from other features, by the same function offline and online.

    Args:
        name: Name of the feature.
        function: Takes arrays of shape (n,), named by its parameters (request columns, `event_time` in microseconds,
            features of views), and returns an array of shape (n,). It must be pure.

    Example:
        >>> OnDemand("is_large", lambda amount: amount > 200.0).inputs
        ('amount',)
    """

    name: str
    function: Callable[..., Any]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that the function takes."""
        return tuple(inspect.signature(self.function).parameters)

    def describe(self) -> dict[str, Any]:
        """Returns the name, the inputs and a hash of the function's source."""
        try:
            body = inspect.getsource(self.function)
        except (OSError, TypeError):
            body = self.function.__code__.co_code.hex()
        return {"name": self.name, "inputs": list(self.inputs), "body": hashlib.sha256(body.encode()).hexdigest()[:16]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """The ordered columns that a model sees, and where each comes from.

    Args:
        request: Numeric columns of the request that are features as they are.
        views: Views of windows.
        on_demand: Functions of the columns before them.

    Raises:
        InvalidInput: If a name comes twice or an on-demand function asks for a column that is not there.
    """

    request: tuple[str, ...] = ()
    views: tuple[View, ...] = ()
    on_demand: tuple[OnDemand, ...] = ()

    def __post_init__(self) -> None:
        """Checks names and inputs."""
        names = self.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidInput("feature names", twice, "be unique over the request, all views and functions")
        known = {*CURRENT_COLUMNS, *self.request, *(name for view in self.views for name in view.feature_names)}
        for item in self.on_demand:
            missing = [name for name in item.inputs if name not in known]
            if missing:
                raise InvalidInput(f"on-demand feature {item.name!r}: inputs", missing, "name columns computed before")
            known.add(item.name)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all features, in the model's order."""
        windows = tuple(name for view in self.views for name in view.feature_names)
        return (*self.request, *windows, *(item.name for item in self.on_demand))

    @functools.cached_property
    def entity_keys(self) -> tuple[str, ...]:
        """Key columns of the entities, each once, in the order of the views."""
        return tuple(dict.fromkeys(view.entity.key for view in self.views))

    @functools.cached_property
    def sources(self) -> tuple[Source, ...]:
        """The sources of the views, each once."""
        return tuple(dict.fromkeys(view.source for view in self.views))

    @functools.cached_property
    def longest(self) -> int:
        """Length of the longest window in microseconds; 0 where there is none."""
        return max((window.span + window.hop for view in self.views for window in view.windows), default=0)

    def add_on_demand(self, values: np.ndarray, event_time: np.ndarray) -> None:
        """Fills the on-demand columns of a matrix from the columns before them, in place.

        Args:
            values: Shape (n, features), float64, with request and view columns filled.
            event_time: Shape (n,), int64 microseconds.
        """
        where = self._where
        with np.errstate(divide="ignore", invalid="ignore"):
            for item in self.on_demand:
                columns = [event_time if name == "event_time" else values[:, where[name]] for name in item.inputs]
                values[:, where[item.name]] = item.function(*columns)

    @functools.cached_property
    def _where(self) -> Mapping[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def describe(self) -> dict[str, Any]:
        """Returns the whole definition, ready for JSON."""
        return {
            "request": list(self.request),
            "views": [view.describe() for view in self.views],
            "on_demand": [item.describe() for item in self.on_demand],
        }

    @functools.cached_property
    def version(self) -> str:
        """Content hash of the definition: twelve hex digits, changed by anything that changes a value."""
        text = json.dumps(self.describe(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
