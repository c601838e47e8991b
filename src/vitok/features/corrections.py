"""Values that were put right later: a past moment sees the old one until the correction was known, then the new one.

What is added to a window cannot be taken back from its count without knowing the event again, but sums can be put
right: a correction is the difference, new less old, which counts as no event. It keeps two times, those of every fact.
Its event time is that of the event it corrects: it lies in exactly the windows that the event lies in and leaves each
together with it (with a time of its own it would stay behind, and a share of frauds could fall below zero). Its ingest
time is when it was learned: no question before that sees it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vitok.errors import InvalidInput
from vitok.features.aggregations import Aggregation, Count, Mean, Rate, Ratio, Sum
from vitok.features.definitions import FeatureSet
from vitok.features.sources import SEPARATOR, Source, unique
from vitok.features.views import AnyView, Embedding, View

if TYPE_CHECKING:
    import polars as pl

_COUNTS, _KNOWN = "__counts", "__known"


def with_corrections(
    features: FeatureSet, sources: "Mapping[str, pl.DataFrame]", corrections: "Mapping[str, pl.DataFrame]"
) -> "tuple[FeatureSet, dict[str, pl.DataFrame]]":
    """Puts corrections among the events of their sources, for `table` and `rebuild`.

    Args:
        features: The definitions.
        sources: Source name to its events, as frames. Where a corrected source has no ingest time, its events are known
            at their event time, or at `known_time` where they have such a column.
        corrections: Source name to what was put right: the id of the event, its event time, its entity keys and
            columns of conditions as it had them; in the aggregated columns new less old; and when that was learned, in
            the column of the source's ingest time, or in `known_time` where it has none.

    Returns:
        Definitions with features of the same names, and sources for them. They are for computing only: their content
        hashes are not those of the definitions that were given.

    Raises:
        InvalidInput: If a source or a column is missing, or a view of a corrected source states a lag, counts the
            current event, or has features that a difference does not put right.

    Example:
        A payment of 10 at 1 turns out, at 5, to have been one of 4.

        >>> import polars as pl
        >>> from vitok.features import Entity, table
        >>> card, paid = Entity("card", "card"), Source("paid", "id", "at")
        >>> spent = View(name="card", entity=card, source=paid, aggregations=(Mean("euro", "1h"),))
        >>> moments = pl.col("^at|known_time|event_time$").cast(pl.Datetime("us", "UTC"))
        >>> events = pl.DataFrame({"id": ["a", "b"], "card": ["7", "7"], "at": [1, 2], "euro": [10.0, 20.0]})
        >>> right = pl.DataFrame({"id": ["a"], "card": ["7"], "at": [1], "euro": [-6.0], "known_time": [5]})
        >>> asked = pl.DataFrame({"event_time": [4, 5], "card": ["7", "7"]})
        >>> events, right, asked = (frame.with_columns(moments) for frame in (events, right, asked))
        >>> made = with_corrections(FeatureSet(views=(spent,)), {"paid": events}, {"paid": right})
        >>> table(asked, *made)["card_euro_mean_1h"].to_list()
        [15.0, 12.0]
    """
    views: list[AnyView] = []
    for view in features.views:
        if isinstance(view, Embedding) or view.source.name not in corrections:
            views.append(view)
            continue
        check_correctable([view])
        assert isinstance(view, View)  # noqa: S101 - checked
        aggregations = tuple(_counting_events(item) for item in view.aggregations)
        views.append(dataclasses.replace(view, source=_bitemporal(view.source), aggregations=aggregations))
    whole = dataclasses.replace(features, views=tuple(views))
    declared = {source.name: source for source in features.sources}
    merged = dict(sources)
    for name, rows in corrections.items():
        if name not in declared or name not in sources:
            raise InvalidInput("corrections", name, f"be of one of {', '.join(sorted({*declared} & {*sources}))}")
        needed = [view for view in features.windowed if view.source.name == name]
        merged[name] = _merged(declared[name], needed, sources[name], rows)
    return whole, merged


def check_correctable(views: Sequence[AnyView]) -> None:
    """Checks that differences put the features of some views right.

    Raises:
        InvalidInput: If a view is none of windows, states a lag, counts the current event, or has other features than
            counts, sums, means, and rates and ratios of these.
    """
    for view in views:
        where = f"view {view.name!r}"
        if not isinstance(view, View):
            raise InvalidInput(where, type(view).__name__, "be a view of windows", "Send a newer row instead.")
        if view.lag is not None or view.include_current:
            rule = "state no lag and not count the current event where its source has corrections"
            raise InvalidInput(where, view.lag if view.lag is not None else "include_current", rule)
        if not view.plan.is_additive:
            kinds = sorted({item.kind for item in view.aggregations})
            raise InvalidInput(where, kinds, "be of counts, sums and means where its source has corrections")


def _bitemporal(source: Source) -> Source:
    return source if source.ingest_time else dataclasses.replace(source, ingest_time=_KNOWN)


def _counting_events(item: Aggregation) -> Aggregation:
    # The same feature over events and corrections: sums take both, numbers of events and of values do not.
    if isinstance(item, Ratio):
        return dataclasses.replace(item, upper=_counting_events(item.upper), lower=_counting_events(item.lower))
    is_event = (*item.where, (_COUNTS, "==", 1))
    if isinstance(item, Count):
        return Count(item.over, name=item.title, where=is_event)
    if isinstance(item, Rate):
        return dataclasses.replace(item, name=item.title, where=is_event)
    if isinstance(item, Mean):
        n = Count(item.over, where=(*is_event, (item.column, ">=", -math.inf)))
        return Ratio(Sum(item.column, item.over, where=item.where), n, name=item.title)
    return item


def _merged(source: Source, views: Sequence[View], events: "pl.DataFrame", rows: "pl.DataFrame") -> "pl.DataFrame":
    import polars as pl

    known = source.ingest_time or "known_time"
    needed = unique(
        [source.event_id, source.event_time, *(name for view in views for name in (*view.entity.keys, *view.columns))]
    )
    for where, frame, wanted in (
        (f"source {source.name!r}", events, [*needed, *([known] if source.ingest_time else [])]),
        (f"corrections of {source.name!r}", rows, [*needed, known]),
    ):
        missing = [name for name in wanted if name not in frame.columns]
        if missing:
            raise InvalidInput(f"{where}: columns", frame.columns, f"hold {', '.join(missing)}")
    named = source.ingest_time or _KNOWN
    if not source.ingest_time:
        # Of one id the first counts, by the order of the rows; a time of ingest would change that order.
        events = events.unique(source.event_id, keep="first", maintain_order=True)
    place = pl.int_range(pl.len()).over(source.event_id).cast(pl.String)
    told = pl.col(source.event_id).cast(pl.String)
    added = rows.select(
        told + SEPARATOR + place.alias("place"),
        *(pl.col(name) for name in needed if name != source.event_id),
        pl.col(known).alias(named),
        pl.lit(0, pl.Int8).alias(_COUNTS),
    )
    counted = events.select(
        told,
        *(pl.col(name) for name in needed if name != source.event_id),
        pl.col(known if known in events.columns else source.event_time).alias(named),
        pl.lit(1, pl.Int8).alias(_COUNTS),
    )
    return pl.concat([counted, added], how="vertical_relaxed")
