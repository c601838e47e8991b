"""A Flink SQL job from the same definitions: tiles of windows, kept up to date for whoever answers online.

The job reads each source, counts an event id once, and keeps one row for each entity, hop and tile: number, sum,
squares about a pivot, smallest, largest, values by kind, and the newest and oldest values. Tiles are plain groups, not
Flink's windows: those drop what comes after the watermark, here a late event still changes the tile of its event time.
The sink is therefore a table of changes (upsert-kafka, or debezium-json in files): the newest row of a key holds.
`TileReader` merges tiles into the values of the features.
"""

from collections.abc import Iterable, Mapping

from vitok.errors import InvalidInput
from vitok.features.aggregations import Condition
from vitok.features.definitions import FeatureSet
from vitok.features.flink_streams import Input, Stream
from vitok.features.flink_tiles import TileReader, TileTables
from vitok.features.sql import condition, literal, quoted
from vitok.features.views import Latest, View

__all__ = ["Stream", "TileReader", "job"]


def job(features: FeatureSet, *, streams: Mapping[str, Stream] | None = None, sink: str = "") -> str:
    """Writes the job; run it with `sql-client.sh -f FILE`.

    Args:
        features: The definitions.
        streams: Source name to how Flink reads it; by its location, as JSON, by default.
        sink: Where the tiles go: `kafka://host:9092/prefix` (topics `prefix.VIEW_tiles`) or `file:///folder`; next
            to the first source by default.

    Returns:
        Flink SQL, statements apart by a semicolon and an empty line. Views of newest rows and embeddings need no
        tiles; the text says so.

    Raises:
        InvalidInput: If there is no view of windows, a location is missing or unknown, a column's type cannot be
            told, or a view cannot be had from tiles (exact windows; numbers made by buckets).

    Example:
        >>> from vitok.features import Count, Entity, FeatureSet, Source, View
        >>> payments = Source("payments", "payment_id", location="kafka://localhost:9092/payments")
        >>> customer = Entity("customer", "customer_id")
        >>> view = View(name="customer", entity=customer, source=payments, aggregations=(Count(("1h",)),))
        >>> print(job(FeatureSet(views=(view,))))
        -- Tiles of feature set ...
        CREATE TABLE `payments` ...
    """
    views = features.windowed
    if not views:
        raise InvalidInput("features: views", (), "hold a view of windows", "Only windows have tiles.")
    known = sorted({view.source.name for view in views})
    for name in streams or {}:
        if name not in known:
            raise InvalidInput("streams", name, f"name a source of windows: {', '.join(known)}")
    tables = {
        view.source: Input(view.source, (streams or {}).get(view.source.name, Stream()), features) for view in views
    }
    target = sink or f"{next(iter(tables.values())).location.rstrip('/')}-tiles"
    keep = max(table.keep for table in tables.values())
    parts = [_head(features, keep), *(text for table in tables.values() for text in table.statements())]
    inserts: list[str] = []
    for view in views:
        tiles = TileTables(view)
        made = _View(tiles, tables[view.source])
        parts += [made.inputs(), *tiles.declarations(target)]
        inserts += made.inserts()
    return ";\n\n".join([*parts, "EXECUTE STATEMENT SET BEGIN\n" + ";\n".join(inserts) + ";\nEND"]) + ";\n"


def _head(features: FeatureSet, keep: int) -> str:
    lines = [
        f"-- Tiles of feature set {features.version}, generated from its definitions by vitok.",
        "-- A question at time t about a window [start, t) merges the tiles from its start on, the longest hop that",
        "-- fits first; the rest, from the last whole tile to t, comes from the raw events of the source.",
    ]
    for view in features.views:
        if isinstance(view, Latest):
            lines.append(f"-- View {view.name}: the newest row of an entity needs no tiles; its rows go online as is.")
        elif not isinstance(view, View):
            lines.append(f"-- View {view.name}: vectors come from their index.")
    state = -(-keep // 1000)
    return "\n".join(lines) + (
        "\nSET 'table.local-time-zone' = 'UTC';\n\n"
        "SET 'execution.runtime-mode' = 'streaming';\n\n"
        "-- Files are whole, and Kafka's offsets are kept, at each checkpoint.\n"
        "SET 'execution.checkpointing.interval' = '60 s';\n\n"
        "-- What no window of a question to come can reach is forgotten.\n"
        f"SET 'table.exec.state.ttl' = '{state} ms'"
    )


class _View:
    # The queries that fill a view's tables.
    def __init__(self, tables: TileTables, source: Input) -> None:
        self.tables = tables
        self.source = source
        self.view = tables.view
        self.name = quoted(f"{self.view.name}__inputs")

    def inputs(self) -> str:
        """What each event gives, once for each hop."""
        source, plan = self.source, self.view.plan
        columns = [f"CAST({quoted(name)} AS STRING) AS {quoted(name)}" for name in self.tables.keys]
        columns.append(f"{source.micros(source.source.event_time)} AS `__time`")
        ingest = source.micros(source.source.ingest_time) if source.source.ingest_time else "CAST(0 AS BIGINT)"
        columns.append(f"{ingest} AS `__ingest`")
        columns.append(f"CAST({quoted(source.source.event_id)} AS STRING) AS `__id`")
        for index, item in enumerate(plan.inputs):
            value = source.number(item.column) if item.column else "1e0"
            columns.append(f"{self._where(item.where, value)} AS `__x{index}`")
        for index, item in enumerate(plan.codes):
            value = f"CAST({quoted(item.column)} AS STRING)"
            columns.append(f"{self._where(item.where, value)} AS `__c{index}`")
        hops = ", ".join(f"CAST({hop} AS BIGINT)" for hop in self.tables.hops)
        keys = ", ".join(quoted(name) for name in self.tables.keys)
        named = [f"`__x{i}`" for i in range(len(plan.inputs))] + [f"`__c{i}`" for i in range(len(plan.codes))]
        return (
            f"CREATE TEMPORARY VIEW {self.name} AS\n"  # noqa: S608 - every name and value is quoted
            f"SELECT {', '.join([keys, '`__time`', '`__ingest`', '`__id`', *named])}, `__arrived`, `hop`,\n"
            "  `__time` - MOD(MOD(`__time`, `hop`) + `hop`, `hop`) AS `tile`\n"
            "FROM (\n  SELECT " + ",\n    ".join(columns) + ",\n    `__arrived`\n"
            f"  FROM {quoted(source.once)}\n) CROSS JOIN UNNEST(ARRAY[{hops}]) AS `hops` (`hop`)"
        )

    def inserts(self) -> list[str]:
        """The queries, one for the tiles and one for each end that is kept."""
        out = [self._tiles()]
        keys = ", ".join(quoted(name) for name in (*self.tables.keys, "hop", "tile"))
        for (side, index), (title, most) in self.tables.ends.items():
            way = "ASC" if side == "first" else "DESC"
            out.append(
                f"INSERT INTO {quoted(self.tables.ends_table)}\n"  # noqa: S608 - every name and value is quoted
                f"SELECT {keys}, {literal(side)}, {literal(title)}, `__place`,\n"
                f"  `__time`, `__ingest`, `__id`, `__x{index}`\n"
                "FROM (\n"
                f"  SELECT *, ROW_NUMBER() OVER (PARTITION BY {keys}\n"
                f"    ORDER BY `__time` {way}, `__ingest` {way}, `__id` {way}) AS `__place`\n"
                f"  FROM {self.name} WHERE `__x{index}` IS NOT NULL\n"
                f") WHERE `__place` <= {most}"
            )
        return out

    def _tiles(self) -> str:
        keys = ", ".join(quoted(name) for name in (*self.tables.keys, "hop", "tile"))
        pivots = sorted(index for part, index in self.tables.parts if part == "pivot")
        over = f"PARTITION BY {keys} ORDER BY `__arrived` ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW"
        firsts = "".join(f", FIRST_VALUE(`__x{index}`) OVER `arrivals` AS `__p{index}`" for index in pivots)
        values = ["COUNT(*)"]
        for part, index in self.tables.parts:
            x, p = f"`__x{index}`", f"`__p{index}`"
            values.append(
                {
                    "n": f"COUNT({x})",
                    "sum": f"SUM({x})",
                    "pivot": f"MAX({p})",
                    "shifted": f"SUM({x} - {p})",
                    "squares": f"SUM(({x} - {p}) * ({x} - {p}))",
                    "min": f"MIN({x})",
                    "max": f"MAX({x})",
                    "values": f"COLLECT(`__c{index}`) FILTER (WHERE `__c{index}` IS NOT NULL)",
                }[part]
            )
        events = f"(\n  SELECT *{firsts}\n  FROM {self.name}\n  WINDOW `arrivals` AS ({over})\n)"  # noqa: S608
        return (
            f"INSERT INTO {quoted(self.tables.tiles_table)}\n"
            f"SELECT {keys},\n  " + ",\n  ".join(values) + f"\nFROM {events if pivots else self.name}\nGROUP BY {keys}"
        )

    def _where(self, where: Iterable[Condition], value: str) -> str:
        held = " AND ".join(condition(one) for one in where)
        return f"CASE WHEN {held} THEN {value} END" if held else value
