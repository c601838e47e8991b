"""Definitions read back from what `describe()` wrote, and each feature's own fingerprint and inputs."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vitok.clock import SECOND
from vitok.errors import InvalidInput, NotFound
from vitok.features.aggregations import (
    Aggregation,
    Count,
    Distinct,
    First,
    Last,
    Max,
    Mean,
    Min,
    Rate,
    Ratio,
    Recent,
    Std,
    Sum,
    TopK,
)
from vitok.features.definitions import FeatureSet
from vitok.features.sources import Buckets, Categories, Encoding, Entity, Source, unique
from vitok.features.views import AnyView, Embedding, Latest, View, content_hash

WORDS = ("owner", "description", "tags", "fresh_within", "refresh")
SOURCE_WORDS = ("location", "owner", "description")
_SIMPLE: dict[str, type[Aggregation]] = {kind.kind: kind for kind in (Sum, Mean, Min, Max, Std, First, Last, Distinct)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
    """One feature of a view: what it is made of, apart from everything else in the view.

    Attributes:
        name: Its name.
        meaning: What it is, in words.
        columns: Columns of the source whose values go into it.
        context: Columns that say which rows count, and when: keys, times, the event id.
        source: Name of the source; of an embedding `index@version`.
        fingerprint: Content hash of everything that gives it its value, its name left out: two features of one
            fingerprint have the same values.
        recipe: The same, ready for JSON.
    """

    name: str
    meaning: str
    columns: tuple[str, ...]
    context: tuple[str, ...]
    source: str
    fingerprint: str
    recipe: Mapping[str, Any] = dataclasses.field(repr=False, compare=False)


Part = tuple[str, tuple[str, ...], dict[str, Any]]


def features_of(view: AnyView) -> tuple[Feature, ...]:
    """Takes a view apart into its features, in its order.

    Example:
        >>> card, paid = Entity("card", "card_id"), Source("payments", "payment_id")
        >>> view = View(name="card", entity=card, source=paid, aggregations=(Sum("amount", ("1d",)),))
        >>> [(one.name, one.meaning, one.columns, one.context) for one in features_of(view)]
        [('card_amount_sum_1d', 'sum of amount over 1d', ('amount',), ('card_id', 'event_time', 'payment_id'))]
    """
    if isinstance(view, Embedding):
        parts: Iterable[Part] = (
            (f"component {place} of {view.reference}", (), {"place": place}) for place in range(view.dimension)
        )
        shared: dict[str, Any] = {"keys": list(view.entity.keys), "index": view.reference, "dimension": view.dimension}
        return tuple(
            _feature(name, meaning, columns, view.entity.keys, view.reference, {**shared, **own})
            for name, (meaning, columns, own) in zip(view.feature_names, parts, strict=True)
        )
    source = view.source
    shared = {
        "keys": list(view.entity.keys),
        "source": source.name,
        "event_id": source.event_id,
        "event_time": source.event_time,
        "available_after": view.available_after,
    }
    if source.ingest_time:
        shared["ingest_time"] = source.ingest_time
    context = [*view.entity.keys, source.event_time, source.event_id, source.ingest_time]
    if isinstance(view, Latest):
        context.append(source.deleted)
        shared |= {"deleted": source.deleted, "ttl": view.max_age}
        parts = (
            (f"newest {column}", (column,), {"column": column, "dtype": dtype, "encode": _encoding(source, (column,))})
            for column, dtype in zip(view.columns, view.dtypes, strict=True)
        )
    else:
        shared["include_current"] = view.include_current
        parts = _windowed(view)
    return tuple(
        _feature(name, meaning, columns, unique(context), source.name, {**shared, **own})
        for name, (meaning, columns, own) in zip(view.feature_names, parts, strict=True)
    )


def _windowed(view: View) -> Iterator[Part]:
    for item in view.aggregations:
        what = {name: value for name, value in item.describe().items() if name not in {"name", "over"}}
        for part in ("upper", "lower"):
            if part in what:
                what[part] = {name: value for name, value in what[part].items() if name not in {"name", "over"}}
        encode = _encoding(view.source, item.inputs)
        for window in view.windows_of(item):
            own = {"aggregation": what, "window": [window.span, window.hop], "encode": encode}
            n = item.k if isinstance(item, TopK) else item.n if isinstance(item, Recent) else 1
            for rank in range(1, n + 1):
                meaning = f"{_meaning(item, rank)} over {window.label}"
                yield meaning, item.inputs, {**own, "rank": rank} if n > 1 else own


def _meaning(item: Aggregation, rank: int) -> str:
    if isinstance(item, Ratio):
        return f"{_meaning(item.upper, 1)} per {_meaning(item.lower, 1)}"
    text = {
        "count": "number of events",
        "rate": f"events per {getattr(item, 'per', '')}",
        "distinct": f"different values of {item.column}",
        "top": f"value {rank} by frequency of {item.column}",
        "recent": f"event {rank} from the end: {item.column}",
        "std": f"standard deviation of {item.column}",
    }.get(item.kind, f"{item.kind} of {item.column}")
    conditions = " and ".join(
        f"{name} {operator} {', '.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, operator, value in item.where
    )
    return f"{text} where {conditions}" if conditions else text


def _encoding(source: Source, columns: Iterable[str]) -> dict[str, Any]:
    return {name: source.encodings[name].describe() for name in columns if name in source.encodings}


def _feature(
    name: str, meaning: str, columns: tuple[str, ...], context: tuple[str, ...], source: str, recipe: dict[str, Any]
) -> Feature:
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    return Feature(
        name=name,
        meaning=meaning,
        columns=columns,
        context=tuple(column for column in context if column not in columns),
        source=source,
        fingerprint=digest,
        recipe=recipe,
    )


def words_of(view: AnyView) -> dict[str, Any]:
    """Returns what a view says of itself that changes no value: owner, description and the like, ready for JSON."""
    out: dict[str, Any] = {name: getattr(view, name) for name in WORDS if getattr(view, name)}
    if "tags" in out:
        out["tags"] = list(out["tags"])
    if not isinstance(view, Embedding):
        source = {name: getattr(view.source, name) for name in SOURCE_WORDS if getattr(view.source, name)}
        if source:
            out["source"] = source
    return out


def view_of(description: Mapping[str, Any], words: Mapping[str, Any] | None = None) -> AnyView:
    """Makes a view again from what its `describe()` returned.

    Args:
        description: As written, possibly through JSON.
        words: What `words_of` returned; without it owner and the like are empty.

    Returns:
        A view with the same features; the same content hash where this version of vitok wrote the description.

    Raises:
        InvalidInput: If it is no description of a view.

    Example:
        >>> card, paid = Entity("card", "card_id"), Source("payments", "payment_id")
        >>> view = View(name="card", entity=card, source=paid, aggregations=(Count(("1h", "7d")),))
        >>> view_of(view.describe()).version == view.version
        True
    """
    words = words or {}
    said: dict[str, Any] = {name: words[name] for name in WORDS if name in words}
    said["tags"] = tuple(said.get("tags", ()))
    try:
        entity = _entity(description["entity"])
        if "index" in description:
            index, _, version = description["index"].rpartition("@")
            return Embedding(
                name=description["name"],
                entity=entity,
                index=index,
                index_version=version,
                dimension=description["dimension"],
                **said,
            )
        source = _source(description["source"], words.get("source", {}))
        shared = {"name": description["name"], "entity": entity, "source": source, "lag": description.get("lag")}
        if "latest" in description:
            ttl = description["ttl"]
            columns = dict(description["latest"])
            return Latest(columns=columns, ttl=f"{ttl // SECOND}s" if ttl else "", **shared, **said)
        return View(
            aggregations=tuple(_aggregation(item) for item in description["aggregations"]),
            include_current=description["include_current"],
            exact=description["exact"],
            **shared,
            **said,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(
            "description of a view",
            dict(description) if isinstance(description, Mapping) else description,
            f"be what describe() of a view returned ({type(error).__name__}: {error})",
        ) from None


def _entity(described: Mapping[str, Any]) -> Entity:
    key = described["key"]
    return Entity(described["name"], key if isinstance(key, str) else tuple(key))


def _source(described: Mapping[str, Any], words: Mapping[str, Any]) -> Source:
    encode: dict[str, Encoding] = {}
    for column, how in described.get("encode", {}).items():
        encode[column] = Categories(tuple(how["categories"])) if "categories" in how else Buckets(how["buckets"])
    return Source(
        described["name"],
        described["event_id"],
        described["event_time"],
        described.get("ingest_time", ""),
        described.get("deleted", ""),
        tuple(encode.items()),
        **{name: words[name] for name in SOURCE_WORDS if name in words},
    )


def _aggregation(described: Mapping[str, Any]) -> Aggregation:
    kind, over, name = described["kind"], tuple(described["over"]), described["name"]
    where = tuple((column, operator, value) for column, operator, value in described.get("where", ()))
    if kind == "ratio":
        return Ratio(_aggregation(described["upper"]), _aggregation(described["lower"]), name=name)
    if kind == "count":
        return Count(over, name=name, where=where)
    if kind == "rate":
        return Rate(over, name=name, where=where, per=described["per"])
    column = described["column"]
    if kind == "top":
        return TopK(column, over, name=name, where=where, k=described["k"])
    if kind == "recent":
        return Recent(column, over, name=name, where=where, n=described["n"])
    if kind not in _SIMPLE:
        known = sorted([*_SIMPLE, "count", "rate", "ratio", "recent", "top"])
        raise InvalidInput("aggregation: kind", kind, f"be one of {', '.join(known)}", "A later vitok wrote it.")
    return _SIMPLE[kind](column, over, name=name, where=where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Function:
    """An on-demand feature as it was described: its code is known by a hash.

    Attributes:
        name: Name of the feature.
        inputs: Columns that it takes.
        body: Hash of its source.
    """

    name: str
    inputs: tuple[str, ...]
    body: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetVersion:
    """A feature set as it was described, by a catalogue or in a model's package.

    Attributes:
        name: What it is called; the name of the model by default.
        version: Content hash.
        request: Columns of the request that are features.
        views: Its views.
        on_demand: Its functions.
        select: The features that the model sees; empty for all.
        pins: View to content hash, as they were described.
    """

    name: str
    version: str
    request: tuple[str, ...]
    views: tuple[AnyView, ...]
    on_demand: tuple[Function, ...]
    select: tuple[str, ...]
    pins: Mapping[str, str]

    @classmethod
    def of(cls, features: FeatureSet, name: str = "features") -> "SetVersion":
        """Takes down a feature set, with the words of its views."""
        found = cls.read({"version": features.version, **features.describe()}, name)
        return dataclasses.replace(found, views=features.views)

    @classmethod
    def read(cls, document: Mapping[str, Any], name: str = "features") -> "SetVersion":
        """Reads what `FeatureSet.describe()` wrote, such as the `features.json` of a model's package.

        Raises:
            InvalidInput: If it is no such description.

        Example:
            >>> from vitok.features import FeatureSet, OnDemand
            >>> features = FeatureSet(request=("amount",), on_demand=(OnDemand("large", lambda amount: amount > 9),))
            >>> SetVersion.read(features.describe()).names
            ('amount', 'large')
        """
        try:
            described = [dict(item) for item in document["views"]]
            body = {part: document[part] for part in ("request", "views", "on_demand")}
            if document.get("select"):
                body["select"] = document["select"]
            return cls(
                name=name,
                version=str(document.get("version") or content_hash(body)),
                request=tuple(document["request"]),
                views=tuple(view_of(item) for item in described),
                on_demand=tuple(
                    Function(name=item["name"], inputs=tuple(item["inputs"]), body=item["body"])
                    for item in document["on_demand"]
                ),
                select=tuple(document.get("select") or ()),
                pins={item["name"]: content_hash(item) for item in described},
            )
        except (KeyError, TypeError) as error:
            raise InvalidInput(
                "description of a feature set",
                document,
                f"be what FeatureSet.describe() returned ({type(error).__name__}: {error})",
            ) from None

    @property
    def names(self) -> tuple[str, ...]:
        """The features that the model sees, in its order."""
        return self.select or self.computed

    @functools.cached_property
    def computed(self) -> tuple[str, ...]:
        """All features: of the request, of the views, of the functions."""
        of_views = (name for view in self.views for name in view.feature_names)
        return (*self.request, *of_views, *(item.name for item in self.on_demand))

    @functools.cached_property
    def features(self) -> Mapping[str, Feature]:
        """The features of the views, by name."""
        return {one.name: one for view in self.views for one in features_of(view)}

    @functools.cached_property
    def fingerprints(self) -> Mapping[str, str]:
        """What gives each feature its value, as a hash; that of a function holds those of its inputs."""
        found = {name: f"request.{name}" for name in self.request}
        found |= {name: one.fingerprint for name, one in self.features.items()}
        for item in self.on_demand:
            parts = [item.body, *(found.get(name, f"request.{name}") for name in item.inputs)]
            found[item.name] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
        return found

    @functools.cached_property
    def used(self) -> frozenset[str]:
        """The features that reach the model, as they are or through a function."""
        reached = set(self.names)
        for item in reversed(self.on_demand):
            if item.name in reached:
                reached.update(item.inputs)
        return frozenset(reached) & frozenset(self.computed)

    def view(self, name: str) -> AnyView:
        """Returns one of its views.

        Raises:
            NotFound: If it has none of that name.
        """
        for view in self.views:
            if view.name == name:
                return view
        raise NotFound("view", name, [view.name for view in self.views])

    def __str__(self) -> str:
        return f"{self.name} {self.version}: {len(self.names)} features, views {', '.join(self.pins) or 'none'}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Use:
    """A model version and the features it was made with.

    Attributes:
        model: Name and number, such as `"fraud/3"`.
        features: The feature set as it was then.
    """

    model: str
    features: SetVersion

    @property
    def pins(self) -> Mapping[str, str]:
        """View to content hash."""
        return self.features.pins

    def __str__(self) -> str:
        return f"{self.model} uses {self.features}"
