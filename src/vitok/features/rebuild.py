"""The vector of one past decision, computed again from the events that were known when it was made."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vitok.errors import InvalidInput
from vitok.features.definitions import FeatureSet
from vitok.features.events import key_texts, microseconds
from vitok.features.history import Session
from vitok.features.key_table import has_key
from vitok.features.sources import SEPARATOR, Entity, key_text, unique
from vitok.features.table import table
from vitok.features.views import Embedding, Latest, View

if TYPE_CHECKING:
    import polars as pl

_ALIAS = "__source_{}"
_MEMORY = "1GB"


def rebuild(
    features: FeatureSet,
    sources: Mapping[str, Any],
    *,
    keys: Mapping[str, str | int],
    time: int,
    known_at: int | None = None,
    request: Mapping[str, float | None] | None = None,
    indexes: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Computes the vector that a decision must have seen: as of its time, of what was known when it was made.

    A view sees events with `event_time < time` whose ingest time is not after `known_at`, also those that became known
    between the two moments, as a stream that had taken them in would. A view that states a lag sees events from that
    long after their event time on, whatever their ingest time says. Of a source without ingest time all is taken as
    known: leave out what was not.

    Args:
        features: The definitions that the decision's model was made with.
        sources: By name of the source: a frame, or files of Parquet or CSV, as `table` takes them.
        keys: Each key column of the entities to the decision's key.
        time: The event time of the decision, in microseconds.
        known_at: When it was made, in microseconds; by default its event time.
        request: Each request column to its number; None for null.
        indexes: The vectors of embeddings, as `table` takes them.

    Returns:
        Shape (features,), float64, in the model's order; NaN where a feature has no value.

    Raises:
        InvalidInput: If a key, a request column, a source or a column of one is missing.

    Example:
        >>> import polars as pl
        >>> from vitok.features import Count, Entity, FeatureSet, Source, View
        >>> paid = Source("payments", "id", ingest_time="known_at")
        >>> view = View(name="card", entity=Entity("card", "card"), source=paid, aggregations=(Count(("1h",)),))
        >>> events = pl.DataFrame({"id": ["a", "b"], "card": ["7", "7"], "event_time": [10, 20], "known_at": [10, 90]})
        >>> events = events.with_columns(pl.col("event_time", "known_at").cast(pl.Datetime("us", "UTC")))
        >>> features, sources = FeatureSet(views=(view,)), {"payments": events}
        >>> [rebuild(features, sources, keys={"card": 7}, time=50, known_at=at).item() for at in (60, 100)]
        [1.0, 2.0]
    """
    import polars as pl

    known_at = time if known_at is None else known_at
    given = request or {}
    spine: dict[str, Any] = {}
    for kind, wanted, found in (("keys", features.entity_keys, keys), ("request", features.request, given)):
        missing = [name for name in wanted if name not in found]
        if missing:
            raise InvalidInput(kind, sorted(found), f"hold {', '.join(missing)}")
    spine |= {name: [key_text(name, keys[name])] for name in features.entity_keys}
    spine |= {name: [None if given[name] is None else float(given[name] or 0.0)] for name in features.request}
    asked = pl.DataFrame(spine, schema_overrides=dict.fromkeys(features.request, pl.Float64))
    asked = asked.with_columns(event_time=pl.lit(time).cast(pl.Datetime("us", "UTC")))
    known: dict[str, Any] = {}
    views: list[View | Latest | Embedding] = []
    for view in features.views:
        if isinstance(view, Embedding):
            views.append(view)
            continue
        if view.source.name not in sources:
            rule = f"hold {view.source.name!r}, which view {view.name!r} reads"
            raise InvalidInput("sources", sorted(sources), rule)
        # Views of one source may know its rows from different moments on: each has a source of its own.
        own = dataclasses.replace(view.source, name=_ALIAS.format(view.name))
        known[own.name] = _known(view, sources[view.source.name], keys, time, known_at)
        lag = "0s" if view.available_after is None else view.lag
        if isinstance(view, Latest):
            declared = dict(zip(view.columns, view.dtypes, strict=True))
            views.append(dataclasses.replace(view, source=own, lag=lag, columns=declared))
        else:
            views.append(dataclasses.replace(view, source=own, lag=lag))
    whole = dataclasses.replace(features, views=tuple(views))
    try:
        made = table(asked, whole, known, indexes=indexes)
    except InvalidInput as error:
        for view in features.views:
            if not isinstance(view, Embedding) and _ALIAS.format(view.name) in error.field:
                field = error.field.replace(_ALIAS.format(view.name), view.source.name)
                raise InvalidInput(field, error.value, error.rule, error.fix) from None
        raise
    assert isinstance(made, pl.DataFrame)  # noqa: S101 - no file was asked for
    return made.select(pl.col(name).cast(pl.Float64).fill_null(np.nan) for name in features.names).to_numpy()[0]


def _known(view: View | Latest, data: Any, keys: Mapping[str, str | int], time: int, known_at: int) -> "pl.DataFrame":
    # The rows that may matter to the decision: few, whatever the size of the source.
    import polars as pl

    source, entity, where = view.source, view.entity, f"source {view.source.name!r}"
    wanted = [*entity.keys, source.event_time, source.ingest_time, source.event_id, *view.columns]
    columns = unique([*wanted, source.deleted if isinstance(view, Latest) else ""])
    asked = SEPARATOR.join(key_text(name, keys[name]) for name in entity.keys)
    with Session(_MEMORY) as session:
        rows = session.open(data, where, columns, (*entity.keys, source.event_id))
        about = [frame.filter(_is_about(frame, entity, asked, where)) for frame in rows.batches(columns)]
        found = pl.concat(about) if about else pl.DataFrame(schema=dict(rows.schema)).select(columns)
        if source.event_id and len(found):
            # A row of the same event about somebody else may have come first; it is the one that counts.
            ids = found[source.event_id].unique().implode()
            of_ids = [frame.filter(pl.col(source.event_id).is_in(ids)) for frame in rows.batches(columns)]
            found = pl.concat(of_ids)
    if view.available_after is not None and known_at >= time:
        return found
    if view.available_after is not None:
        known = microseconds(found, source.event_time, where) + view.available_after <= known_at
    elif source.ingest_time:
        known = microseconds(found, source.ingest_time, where) <= known_at
    else:
        return found
    return found.filter(pl.Series(known, dtype=pl.Boolean))


def _is_about(frame: "pl.DataFrame", entity: Entity, asked: str, where: str) -> "pl.Series":
    import polars as pl

    there = has_key(frame, entity)
    out = np.zeros(len(frame), np.bool_)
    if there.any():
        out[there] = (key_texts(frame.filter(pl.Series(there)), entity, where) == asked).to_numpy()
    return pl.Series(out)
