"""Feature views: the features of one entity from one source, as windows, as latest values, or from an index."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitok.clock import duration
from vitok.errors import InvalidInput
from vitok.features.aggregations import Aggregation, Recent, TopK, Window
from vitok.features.sources import Entity, Source, lag_of, length_of, unique

if TYPE_CHECKING:
    from vitok.features.plan import Plan

DTYPES = ("float64", "float32", "int64", "int32", "bool")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Described:
    # What every kind of view says of itself besides what it computes; none of it changes a value.
    owner: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    fresh_within: str = ""
    refresh: str = "1h"

    def _check_described(self, name: str) -> None:
        if not name.isidentifier():
            raise InvalidInput(
                "view: name", name, "be letters, digits and underscores", "It begins its features' names."
            )
        object.__setattr__(self, "tags", tuple(self.tags))
        for field, length in (("fresh_within", self.fresh_within), ("refresh", self.refresh)):
            if length:
                length_of(f"view {name!r}: {field}", length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class View(_Described):
    """Features of one entity from one source: aggregations of its events over windows.

    Args:
        name: First part of the names of its features.
        entity: Who they are about.
        source: Which events are aggregated.
        aggregations: What is computed over which windows.
        include_current: Whether the event that asks is part of its own windows; for tables only.
        exact: Whether the tails of the windows are exact to the microsecond rather than to the hop.
        lag: When a fact is known here: None means at its ingest time where the source has one, else at its event
            time; a length such as `"10m"`, or `"0s"`, means that long after its event time whatever its ingest time
            says (so that a source loaded in one go has a past).
        owner: Who answers for it.
        description: What it says, in a sentence.
        tags: Words to find it by.
        fresh_within: How old its newest event may be before it is stale; "" for no promise.
        refresh: How often batch sources are taken to the online store.

    Raises:
        InvalidInput: If two features would have the same name, or an option cannot be.

    Example:
        >>> from vitok.features import Count, Mean
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
    aggregations: tuple[Aggregation, ...]
    include_current: bool = False
    exact: bool = False
    lag: str | int | None = None

    def __post_init__(self) -> None:
        """Checks what the types cannot say."""
        self._check_described(self.name)
        object.__setattr__(self, "aggregations", tuple(self.aggregations))
        if not self.aggregations:
            raise InvalidInput(f"view {self.name!r}: aggregations", (), "hold at least one, such as Count(('1d',))")
        if not self.source.event_id:
            raise InvalidInput(
                f"view {self.name!r}: source {self.source.name!r}: event_id",
                "",
                "name the column that tells events apart",
            )
        names = self.feature_names
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InvalidInput(f"view {self.name!r}: feature names", twice, "be unique", "Give one of them a name=.")
        if self.include_current and any(
            item.kind not in {"count", "sum", "mean"} or item.where for item in self.aggregations
        ):
            raise InvalidInput(
                f"view {self.name!r}: include_current", True, "come with plain counts, sums and means only"
            )
        _ = self.available_after

    @functools.cached_property
    def available_after(self) -> int | None:
        """The lag in microseconds, or None where the ingest time decides."""
        if self.lag is not None:
            return lag_of(self.lag, f"view {self.name!r}: lag")
        return None if self.source.ingest_time else 0

    @functools.cached_property
    def windows(self) -> tuple[Window, ...]:
        """All windows of the view, shortest first, each once."""
        found = {window for item in self.aggregations for window in self.windows_of(item)}
        return tuple(sorted(found, key=lambda window: (window.span, window.hop)))

    def windows_of(self, item: Aggregation) -> tuple[Window, ...]:
        """Windows of one aggregation, in its order."""
        exact = self.exact or isinstance(item, Recent)
        return tuple(Window.of(span, exact=exact) for span in item.over)

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns of the source that are aggregated or asked for by conditions, each once."""
        return unique(name for item in self.aggregations for name in item.inputs)

    @functools.cached_property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features, in the order in which they are computed."""
        out: list[str] = []
        for item in self.aggregations:
            for window in self.windows_of(item):
                if isinstance(item, Recent):
                    out.extend(f"{self.name}_{item.title}_{place}" for place in range(1, item.n + 1))
                elif isinstance(item, TopK):
                    out.extend(f"{self.name}_{item.title}{place}_{window.label}" for place in range(1, item.k + 1))
                else:
                    out.append(f"{self.name}_{item.title}_{window.label}")
        return tuple(out)

    @functools.cached_property
    def plan(self) -> "Plan":
        """What the kernels need to know to compute the features."""
        from vitok.features.plan import compile_view

        return compile_view(self)

    @property
    def longest(self) -> int:
        """How far back an event can matter, in microseconds."""
        return max(window.span + window.hop for window in self.windows) + (self.available_after or 0)

    def describe(self) -> dict[str, Any]:
        """Returns everything that gives the features their values, ready for JSON and for the content hash."""
        out = {
            "name": self.name,
            "entity": {"name": self.entity.name, "key": _key(self.entity)},
            "source": self.source.describe(),
            "aggregations": [item.describe() for item in self.aggregations],
            "include_current": self.include_current,
            "exact": self.exact,
        }
        if self.lag is not None:
            out["lag"] = self.available_after
        return out

    @functools.cached_property
    def version(self) -> str:
        """Content hash: twelve hex digits, changed by anything that changes a value."""
        return content_hash(self.describe())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latest(_Described):
    """Features that are the newest row of an entity: a profile, a balance, a score computed elsewhere.

    The newest row by event time, then ingest time; a question at time t sees rows with `event_time < t` that were
    known at t, and no row older than `ttl`.

    Args:
        name: First part of the names of its features.
        entity: Who they are about.
        source: Where the rows come from.
        columns: Which columns, or column to type: float64 (default), float32, int64, int32, bool. Text needs an
            encoding of the source.
        ttl: How old a row may be, `t - event_time <= ttl`; "" for any age.
        lag: When a row is known here; as in `View`.
        owner: Who answers for it.
        description: What it says, in a sentence.
        tags: Words to find it by.
        fresh_within: How old its newest event may be before it is stale; "" for no promise.
        refresh: How often it is taken to the online store.

    Example:
        >>> limits = Latest(
        ...     name="account",
        ...     entity=Entity("customer", "customer_id"),
        ...     source=Source("accounts", ingest_time="loaded_at"),
        ...     columns={"credit_limit": "float32", "is_vip": "bool"},
        ...     ttl="90d",
        ... )
        >>> limits.feature_names
        ('account_credit_limit', 'account_is_vip')
    """

    name: str
    entity: Entity
    source: Source
    columns: tuple[str, ...] | Mapping[str, str]
    ttl: str = ""
    lag: str | int | None = None

    def __post_init__(self) -> None:
        """Checks columns and types."""
        self._check_described(self.name)
        given = self.columns if isinstance(self.columns, Mapping) else dict.fromkeys(self.columns, "float64")
        for column, dtype in given.items():
            if dtype not in DTYPES:
                raise InvalidInput(f"view {self.name!r}: {column}", dtype, f"be one of {', '.join(DTYPES)}")
        if not given or (not isinstance(self.columns, Mapping) and len(given) < len(self.columns)):
            raise InvalidInput(f"view {self.name!r}: columns", self.columns, "be some different columns")
        object.__setattr__(self, "columns", tuple(given))
        object.__setattr__(self, "dtypes", tuple(given.values()))
        if self.ttl:
            length_of(f"view {self.name!r}: ttl", self.ttl)
        _ = self.available_after

    dtypes: tuple[str, ...] = dataclasses.field(init=False, default=())

    @functools.cached_property
    def available_after(self) -> int | None:
        """The lag in microseconds, or None where the ingest time decides."""
        if self.lag is not None:
            return lag_of(self.lag, f"view {self.name!r}: lag")
        return None if self.source.ingest_time else 0

    @property
    def longest(self) -> int:
        """How far back a row can matter, in microseconds; 0 for any age."""
        return self.max_age

    @functools.cached_property
    def max_age(self) -> int:
        """The TTL in microseconds; 0 where there is none."""
        return duration(self.ttl) if self.ttl else 0

    @functools.cached_property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features, in the order of the columns."""
        return tuple(f"{self.name}_{column}" for column in self.columns)

    def describe(self) -> dict[str, Any]:
        """Returns everything that gives the features their values, ready for JSON and for the content hash."""
        out = {
            "name": self.name,
            "entity": {"name": self.entity.name, "key": _key(self.entity)},
            "source": self.source.describe(),
            "latest": dict(zip(self.columns, self.dtypes, strict=True)),
            "ttl": self.max_age,
        }
        if self.lag is not None:
            out["lag"] = self.available_after
        return out

    @functools.cached_property
    def version(self) -> str:
        """Content hash: twelve hex digits, changed by anything that changes a value."""
        return content_hash(self.describe())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedding(_Described):
    """The vector of an entity in one version of an index: `dimension` features that do not change with time.

    Args:
        name: First part of the names of its features.
        entity: Whose vector it is.
        index: Name of the index.
        index_version: Which version of it; another version is another view.
        dimension: Length of the vector, 1 to 4,096.

    Example:
        >>> item = Embedding(
        ...     name="item", entity=Entity("item", "item_id"), index="items", index_version="3", dimension=2
        ... )
        >>> item.feature_names, item.reference
        (('item_0', 'item_1'), 'items@3')
    """

    name: str
    entity: Entity
    index: str
    index_version: str
    dimension: int

    def __post_init__(self) -> None:
        """Checks the dimension."""
        self._check_described(self.name)
        if not 1 <= self.dimension <= 4096:
            raise InvalidInput(f"view {self.name!r}: dimension", self.dimension, "be between 1 and 4096")

    @property
    def reference(self) -> str:
        """Index and version in one word, such as `"items@3"`."""
        return f"{self.index}@{self.index_version}"

    @property
    def longest(self) -> int:
        """Vectors have no time: 0."""
        return 0

    @functools.cached_property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features: one a component."""
        return tuple(f"{self.name}_{place}" for place in range(self.dimension))

    def describe(self) -> dict[str, Any]:
        """Returns everything that gives the features their values, ready for JSON and for the content hash."""
        return {
            "name": self.name,
            "entity": {"name": self.entity.name, "key": _key(self.entity)},
            "index": self.reference,
            "dimension": self.dimension,
        }

    @functools.cached_property
    def version(self) -> str:
        """Content hash: twelve hex digits, changed by anything that changes a value."""
        return content_hash(self.describe())


AnyView = View | Latest | Embedding


def content_hash(description: Mapping[str, Any]) -> str:
    """Returns twelve hex digits of the SHA-256 of a description."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:12]


def _key(entity: Entity) -> str | list[str]:
    return entity.key if isinstance(entity.key, str) else list(entity.key)
