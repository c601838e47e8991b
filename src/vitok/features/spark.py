"""Point-in-time tables on Spark, from the same definitions as `table`.

Spark has no join by nearest time, so each view is rewritten into what it can run. The newest row of an entity is the
largest (event time, ingest time) among the rows that became visible so far: rows and questions are stacked, ordered by
when they become visible, and a running maximum answers the questions. A window is a join of questions with the events
of the same entity within the longest window, aggregated under one condition for each window. Both look at what was
known at the time of the question, so late rows need no repair.

The executors run Spark's own functions; only on-demand features, and views that ask for first, last or recent values,
run Python there (numpy, pandas, pyarrow).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitok.errors import InvalidInput
from vitok.features.definitions import FeatureSet, OnDemand
from vitok.features.plan import (
    COUNT,
    DISTINCT,
    EMPTY_IS_ZERO,
    FIRST,
    LAST,
    MAX,
    MEAN,
    MIN,
    NUMBER,
    RATE,
    RATIO,
    RECENT,
    STD,
    SUM,
    TOP,
    Plan,
)
from vitok.features.sources import Source, unique
from vitok.features.spark_columns import Columns, fingerprint, functions
from vitok.features.sql import quoted
from vitok.features.views import Embedding, Latest, View

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

TIME, EVENT, INGEST, VISIBLE, TIE = "__time", "__event", "__ingest", "__visible", "__tie"
_UTC = frozenset({"UTC", "Etc/UTC", "Z", "GMT", "+00:00", "UTC+00:00"})


def table(spine: "DataFrame", features: FeatureSet, sources: "Mapping[str, DataFrame]") -> "DataFrame":
    """Adds the value of each feature as of each row's `event_time`, as `vitok.features.table` does.

    Rows in are rows out. A Spark frame has no order: give the spine a column to know its rows by. It is read once for
    each entity, so what would differ from one reading to the next (a sample) should be written or cached before.

    Cost: one shuffle of the spine an entity and of each source a view. A question meets the events of its entity in
    up to twice its longest window, so the work grows with the events in that window; a `Latest` costs one sort.

    Args:
        spine: Rows to compute features for: `event_time` (timestamp), the entities' key columns and the request
            columns of the feature set. A null key gives empty features.
        features: The definitions. Views of embeddings are refused: an index is read where it lives.
        sources: Source name to its events: event id, times, entity keys and the columns that are asked for.

    Returns:
        The spine's columns and one for each feature that is not already a column of the spine: latest values in their
        declared type, null where there is none, all others doubles.

    Raises:
        InvalidInput: If a column or source is missing or of the wrong type, if the session's time zone is not UTC, or
            if a view cannot be had on Spark. A null key or time or an infinity stops the job when it runs.
        MissingExtra: If pyspark is not installed.
    """
    f = functions()
    zone = spine.sparkSession.conf.get("spark.sql.session.timeZone")
    if zone not in _UTC:
        raise InvalidInput("spark.sql.session.timeZone", zone, "be UTC", "Set it on the session before reading.")
    fresh = [name for name in features.names if name not in spine.columns]
    on_demand = features.on_demand if {item.name for item in features.on_demand} & {*fresh} else ()
    asked = {*fresh, *(name for item in on_demand for name in item.inputs)}
    views: list[View | Latest] = []
    for view in features.views:
        if not asked & {*view.feature_names}:
            continue
        if isinstance(view, Embedding):
            raise InvalidInput(
                f"view {view.name!r}", "Embedding", "not be an embedding on Spark", "Join its vectors from their index."
            )
        if view.source.name not in sources:
            raise InvalidInput("sources", sorted(sources), f"hold {view.source.name!r}, which view {view.name!r} reads")
        views.append(view)
    read = Columns(spine, "spine")
    out = spine.withColumn(TIME, read.microseconds("event_time"))
    where: dict[str, str] = {}
    for name in features.request:
        number = f.coalesce(read.request(name), f.lit(float("nan")))
        where[name] = f"__value{len(where)}"
        out = out.withColumn(where[name], number)
    events = {
        source: Facts(source, sources[source.name], [one for one in views if one.source == source])
        for source in dict.fromkeys(one.source for one in views)
    }
    for place, entity in enumerate(dict.fromkeys(one.entity for one in views)):
        key = f"__key{place}"
        out = out.withColumn(key, read.key_or_null(entity.keys))
        questions = out.where(f.col(key).isNotNull()).select(key, TIME).distinct()
        answers = questions
        of_entity = [one for one in views if one.entity == entity]
        for one in of_entity:
            where |= {name: f"__value{len(where) + i}" for i, name in enumerate(one.feature_names)}
            facts = events[one.source]
            made = _windows if isinstance(one, View) else _latest
            answers = answers.join(made(one, facts, questions, key, where), [key, TIME], "left")  # type: ignore[arg-type]
        out = out.join(answers, [key, TIME], "left")
        for one in of_entity:
            if isinstance(one, View):
                out = _filled(out, one, where, Columns(spine, "spine", one.source))
    for item in on_demand:
        inputs = [
            f.col(TIME) if name == "event_time" else f.coalesce(f.col(where[name]).cast("double"), f.lit(float("nan")))
            for name in item.inputs
        ]
        where[item.name] = f"__value{len(where)}"
        out = out.withColumn(where[item.name], _function(item)(TIME, *inputs))
    kept = [f.col(quoted(name)) for name in spine.columns]
    return out.select(*kept, *(f.col(where[name]).alias(name) for name in fresh))


class Facts:
    """The events of a source, each id once, with what all views of it need."""

    def __init__(self, source: Source, frame: "DataFrame", views: Sequence[View | Latest]) -> None:
        f = functions()
        self.source = source
        read = self.read = Columns(frame, f"source {source.name!r}", source)
        names = unique(
            [source.event_id, source.event_time, source.ingest_time, source.deleted]
            + [name for view in views for name in (*view.entity.keys, *view.columns)]
        )
        for name in names:
            read.kind(name)
        columns = [f.col(quoted(name)) for name in names]
        frame = frame.select(*columns)
        frame = frame.withColumn(EVENT, read.microseconds(source.event_time))
        # Where nobody says when a fact became known, all are known at once, as far as their order goes.
        frame = frame.withColumn(INGEST, read.microseconds(source.ingest_time) if source.ingest_time else f.lit(0))
        if source.event_id:
            from pyspark.sql import Window as Over

            # The first to become known counts; what follows under its id changes nothing.
            arrival = Over.partitionBy(read.text(source.event_id)).orderBy(INGEST, EVENT, *columns)
            frame = frame.withColumn("__copy", f.row_number().over(arrival)).where("__copy = 1").drop("__copy")
        self.frame = frame

    def of(self, view: View | Latest, key: str) -> "DataFrame":
        """Returns the events with a view's key and the moment from which a question sees each."""
        f = functions()
        lag = view.available_after
        # event_time < t and ingest_time <= t (or event_time + lag <= t), as one bound: t >= visible.
        visible = f.col(EVENT) + max(lag, 1) if lag is not None else f.greatest(f.col(EVENT) + 1, f.col(INGEST))
        return self.frame.withColumn(key, self.read.key(view.entity.keys)).withColumn(VISIBLE, visible)


def _windows(view: View, facts: Facts, questions: "DataFrame", key: str, names: Mapping[str, str]) -> "DataFrame":
    # Answers (key, time, features) for the questions that meet at least one event.
    f = functions()
    plan, read = view.plan, facts.read
    events = facts.of(view, key)
    columns = [f.col(key), f.col(EVENT), f.col(VISIBLE)]
    if plan.has_order:
        tie = fingerprint()(read.text(view.source.event_id))
        columns += [f.col(INGEST), tie.alias(TIE)]
    for index, item in enumerate(plan.inputs):
        columns.append(_where(read, item.where, read.number(item.column) if item.column else f.lit(1.0), f"__x{index}"))
    for index, item in enumerate(plan.codes):
        ranked = any(row[0] == TOP and row[2] == index for row in plan.rows.tolist())
        code = read.number(item.column) + 0.0 if ranked else read.code(item.column)
        columns.append(_where(read, item.where, code, f"__c{index}"))
    # Questions and events meet by bins as long as the longest window: those of one bin and of the bin before.
    reach = max(window.span + window.hop for window in view.windows)
    events = events.select(*columns).withColumn("__bin", _floored(EVENT, reach))
    last = _floored(TIME, reach, shift=1)
    bins = questions.select(key, TIME, f.explode(f.array(last - reach, last)).alias("__bin"))
    starts = []
    for place, window in enumerate(view.windows):
        starts.append(f"__start{place}")
        bins = bins.withColumn(starts[-1], _floored(TIME, window.hop, shift=window.span))
    pairs = bins.join(events, [key, "__bin"]).where(
        (f.col(VISIBLE) <= f.col(TIME)) & (f.col(EVENT) >= f.least(*starts, *starts))
    )
    aggregates = [f.count(f.lit(1)).alias("__all")]
    parts = []
    for place, row in enumerate(plan.rows.tolist()):
        inside = f.col(EVENT) >= f.col(starts[row[1]])
        if row[0] not in {RATIO, RATE, TOP}:
            aggregates.append(_aggregate(row, inside).alias(f"__row{place}"))
        if row[0] == MEAN and view.include_current:
            for part, kind in (("n", NUMBER), ("sum", SUM)):
                aggregates.append(_aggregate([kind, *row[1:]], inside).alias(f"__row{place}_{part}"))
                parts.append((place, part))
    answers = pairs.groupBy(key, TIME).agg(*aggregates)
    for index in {row[2] for row in plan.rows.tolist() if row[0] == TOP}:
        answers = answers.join(_tops(plan, index, pairs, starts, key), [key, TIME], "left")
    for place, row in enumerate(plan.rows.tolist()):
        if row[0] in {RATIO, RATE}:
            upper = f.col(f"__row{row[3]}")
            value = upper * float(plan.scale[place]) if row[0] == RATE else _ratio(upper, f.col(f"__row{row[4]}"))
            answers = answers.withColumn(f"__row{place}", value)
    kept = [f.col(f"__row{place}").cast("double").alias(names[name]) for place, name in enumerate(plan.names)]
    if view.include_current:
        kept += [f.col(f"__row{place}_{part}").alias(f"{names[plan.names[place]]}_{part}") for place, part in parts]
    return answers.select(key, TIME, *kept)


def _where(read: Columns, where: Sequence[Any], value: Any, name: str) -> Any:
    held = read.holds(where)
    return (value if held is None else read.f.when(held, value)).alias(name)


def _floored(name: str, step: int, *, shift: int = 0) -> Any:
    # (name - shift) // step * step for whole numbers of either sign, without a double in between.
    column = functions().col(name) - shift
    return column - functions().pmod(column, functions().lit(step))


def _aggregate(row: Sequence[int], inside: Any) -> Any:
    f = functions()
    kind, _, index, rank, _ = row
    if kind == COUNT:
        return f.count(f.when(inside, 1))
    if kind == DISTINCT:
        return f.size(f.collect_set(f.when(inside, f.col(f"__c{index}"))))
    value = f.when(inside, f.col(f"__x{index}"))
    if kind == SUM:
        return f.coalesce(f.sum(value), f.lit(0.0))
    if kind in {FIRST, LAST, RECENT}:
        order = f.when(value.isNotNull(), f.struct(EVENT, INGEST, TIE, value.alias("value")))
        if kind == RECENT:
            return f.get(f.sort_array(f.collect_list(order), asc=False), rank)["value"]
        return (f.min(order) if kind == FIRST else f.max(order))["value"]
    simple = {NUMBER: f.count, MEAN: f.avg, MIN: f.min, MAX: f.max, STD: f.stddev_samp}
    return simple[kind](value)


def _ratio(upper: Any, lower: Any) -> Any:
    f = functions()
    return f.when(lower != 0, upper.cast("double") / lower.cast("double"))


def _tops(plan: Plan, index: int, pairs: "DataFrame", starts: Sequence[str], key: str) -> "DataFrame":
    # Counts each value first, then sorts the values of a question: most frequent first, the smaller first of equals.
    f = functions()
    rows = [(place, row) for place, row in enumerate(plan.rows.tolist()) if row[0] == TOP and row[2] == index]
    windows = sorted({row[1] for _, row in rows})
    code = f"__c{index}"
    counted = (
        pairs.where(f.col(code).isNotNull())
        .groupBy(key, TIME, code)
        .agg(*(f.count(f.when(f.col(EVENT) >= f.col(starts[place]), 1)).alias(f"__n{place}") for place in windows))
    )
    ranked = counted.groupBy(key, TIME).agg(
        *(
            f.sort_array(
                f.collect_list(
                    f.when(f.col(f"__n{place}") > 0, f.struct(-f.col(f"__n{place}"), f.col(code).alias("value")))
                )
            ).alias(f"__top{place}")
            for place in windows
        )
    )
    made = [f.get(f.col(f"__top{row[1]}"), row[3])["value"].alias(f"__row{place}") for place, row in rows]
    return ranked.select(key, TIME, *made)


def _latest(view: Latest, facts: Facts, questions: "DataFrame", key: str, names: Mapping[str, str]) -> "DataFrame":
    # Answers (key, time, features): a running maximum of (event time, ingest time, row) in the order of visibility.
    from pyspark.sql import Window as Over

    f = functions()
    read = facts.read
    values = [
        read.declared(column, dtype).alias(f"v{place}")
        for place, (column, dtype) in enumerate(zip(view.columns, view.dtypes, strict=True))
    ]
    gone = read.flag(view.source.deleted) if view.source.deleted else f.lit(False)
    row = f.struct(EVENT, INGEST, gone.alias("gone"), *values)
    rows = facts.of(view, key).select(key, f.col(VISIBLE).alias(TIME), f.lit(0).alias("__asks"), row.alias("__row"))
    asked = questions.select(key, TIME, f.lit(1).alias("__asks"), f.lit(None).alias("__row"))
    # At equal times the row comes before the question, as it is visible from that moment on.
    so_far = Over.partitionBy(key).orderBy(TIME, "__asks").rowsBetween(Over.unboundedPreceding, Over.currentRow)
    newest = rows.unionByName(asked).withColumn("__row", f.max("__row").over(so_far)).where("__asks = 1")
    seen = ~f.col("__row")["gone"]
    if view.max_age:
        seen = seen & (f.col(TIME) - f.col("__row")[EVENT] <= view.max_age)
    kept = [
        f.when(seen, f.col("__row")[f"v{place}"]).alias(names[name]) for place, name in enumerate(view.feature_names)
    ]
    return newest.select(key, TIME, *kept)


def _filled(out: "DataFrame", view: View, where: Mapping[str, str], read: Columns) -> "DataFrame":
    # What questions that met no event get, and the asking event's own part of its windows.
    f = functions()
    for place, name in enumerate(view.feature_names):
        kind, _, index, _, _ = view.plan.rows[place].tolist()
        filled = f.coalesce(f.col(where[name]), f.lit(0.0 if kind in EMPTY_IS_ZERO else float("nan")))
        if view.include_current:
            own = f.lit(1.0) if kind == COUNT else read.number(view.plan.inputs[index].column)
            if kind == MEAN:
                n, total = (f.coalesce(f.col(f"{where[name]}_{part}"), f.lit(0.0)) for part in ("n", "sum"))
                filled = f.when(own.isNull(), filled).otherwise((total + own) / (n + 1.0))
            else:
                filled += f.coalesce(own, f.lit(0.0))
        out = out.withColumn(where[name], filled)
    return out


def _function(item: OnDemand) -> Any:
    import numpy as np
    import pandas as pd

    function = item.function

    def computed(time: pd.Series, *columns: pd.Series) -> pd.Series:
        # The first column is there for its length: a function may take nothing.
        with np.errstate(divide="ignore", invalid="ignore"):
            values = function(*(column.to_numpy() for column in columns))
        return pd.Series(np.broadcast_to(np.asarray(values, np.float64), (len(time),)))

    return functions().pandas_udf(computed, "double")
