"""How Flink reads a source: connector, types of columns, watermark, and each event id once."""

import dataclasses
import functools
from collections.abc import Mapping

from vitok.clock import DAY, SECOND, duration
from vitok.errors import InvalidInput
from vitok.features import sql
from vitok.features.definitions import FeatureSet
from vitok.features.plan import TOP
from vitok.features.sources import Buckets, Categories, Source, unique
from vitok.features.sql import literal, quoted

_NUMBERS = ("DOUBLE", "FLOAT", "BIGINT", "INT", "SMALLINT", "TINYINT", "DECIMAL")
_TIME = "TIMESTAMP_LTZ(6)"
_FIX = "Give Source(location='kafka://host:9092/topic'), or a Stream with one."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """How Flink reads a source.

    Args:
        location: `kafka://host:9092/topic` or `file:///folder`; that of the source by default.
        format: `"json"` or another format that Flink has there.
        types: Flink's type of a column where the definitions do not tell: `{"is_new": "BOOLEAN"}`. Times may be
            `TIMESTAMP_LTZ(6)` (the default; ISO 8601 in JSON) or `BIGINT` (microseconds).
        lateness: How far out of order events come: the watermark stays that much behind the newest.
        options: More options of the connector, such as those of its security.
    """

    location: str = ""
    format: str = "json"
    types: Mapping[str, str] = dataclasses.field(default_factory=dict)
    lateness: str = "10m"
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Input:
    """A source as Flink sees it: its columns, their types, and each event id once.

    Args:
        source: The source.
        stream: How Flink reads it.
        features: Whose views of it are computed.

    Attributes:
        once: Name of the view in which an event id counts once.
        reach: How long before the watermark an event still matters, in microseconds.
        keep: How long state is kept, in microseconds.
    """

    def __init__(self, source: Source, stream: Stream, features: FeatureSet) -> None:
        self.source = source
        self.stream = stream
        self.views = [view for view in features.windowed if view.source == source]
        self.once = f"{source.name}__once"
        self.reach = max(view.longest for view in self.views)
        # Longer than any event may still change a tile, by one hop for the tile that it falls in.
        self.keep = self.reach + duration(stream.lateness) + DAY

    @property
    def location(self) -> str:
        """Where the stream is.

        Raises:
            InvalidInput: If nobody says so.
        """
        found = self.stream.location or self.source.location
        if not found:
            raise InvalidInput(
                f"source {self.source.name!r}: location",
                "",
                "say where its stream is",
                _FIX,
            )
        return found

    @functools.cached_property
    def types(self) -> dict[str, str]:
        """Flink's type of each column that is read."""
        out: dict[str, str] = {}
        source = self.source
        keys = unique(name for view in self.views for name in view.entity.keys)
        for name in unique([source.event_id, *keys]):
            out[name] = "STRING"
        for name in unique([source.event_time, source.ingest_time]):
            out[name] = _TIME
        for view in self.views:
            plan = view.plan
            ranked = {row[2] for row in plan.rows.tolist() if row[0] == TOP}
            for name, operator, value in (one for item in (*plan.inputs, *plan.codes) for one in item.where):
                self._wants(out, name, sql.type_of(value), f"where {name} {operator}")
            for item in plan.inputs:
                if item.column:
                    self._wants(out, item.column, "STRING" if item.column in source.encodings else "DOUBLE", "a number")
            for index, item in enumerate(plan.codes):
                if item.column not in source.encodings and index in ranked:
                    self._wants(out, item.column, "DOUBLE", "the most frequent values")
            for item in plan.codes:  # what is only counted may be of any type: its text is
                out.setdefault(item.column, "STRING")
        for name, given in self.stream.types.items():
            out[name] = given.upper()
        return out

    def _wants(self, types: dict[str, str], name: str, wanted: str, purpose: str) -> None:
        given = self.stream.types.get(name, "").upper()
        fits = given == wanted or (wanted == "DOUBLE" and given.split("(")[0] in (*_NUMBERS, "BOOLEAN"))
        if given and not fits:
            raise InvalidInput(f"source {self.source.name!r}: types: {name}", given, f"be {wanted}, for {purpose}")
        # A truth value can be averaged; nothing else is two things at once.
        if not given and {types.get(name, wanted), wanted} == {"BOOLEAN", "DOUBLE"}:
            wanted = "BOOLEAN"
        elif not given and types.get(name, wanted) != wanted:
            raise InvalidInput(
                f"source {self.source.name!r}: {name}",
                (types[name], wanted),
                "have one type",
                f"Give Stream(types={{{name!r}: ...}}).",
            )
        types[name] = given or wanted

    def micros(self, name: str) -> str:
        """Reads a time as whole microseconds since 1970."""
        if self.types[name] == "BIGINT":
            return quoted(name)
        if not self.types[name].startswith("TIMESTAMP_LTZ"):
            raise InvalidInput(
                f"source {self.source.name!r}: types: {name}", self.types[name], f"be {_TIME} or BIGINT microseconds"
            )
        whole = f"UNIX_TIMESTAMP(DATE_FORMAT({quoted(name)}, 'yyyy-MM-dd HH:mm:ss'))"
        return f"{whole} * 1000000 + CAST(DATE_FORMAT({quoted(name)}, 'SSSSSS') AS BIGINT)"

    def statements(self) -> list[str]:
        """The table of the source, and the view of it in which an event id counts once."""
        source, time = self.source, quoted(self.source.event_time)
        if self.types[self.source.event_time] == "BIGINT":
            moment = f"TO_TIMESTAMP_LTZ({time} / 1000, 3)"
        else:
            moment = f"CAST({time} AS TIMESTAMP_LTZ(3))"
        columns = [f"{quoted(name)} {kind}" for name, kind in self.types.items()]
        columns.append(f"`__moment` AS {moment}")
        columns.append("`__arrived` AS PROCTIME()")
        columns.append(f"WATERMARK FOR `__moment` AS `__moment` - {sql.interval(duration(self.stream.lateness))}")
        options = self._options()
        names = ", ".join(quoted(name) for name in self.types)
        reach = -(-self.reach // SECOND)
        return [
            f"CREATE TABLE {quoted(source.name)} (\n  " + ",\n  ".join(columns) + f"\n) WITH ({options})",
            "-- The first copy to arrive counts. What is older than any window that may still be asked for is\n"  # noqa: S608
            "-- left out, as its tile may have been forgotten.\n"
            f"CREATE TEMPORARY VIEW {quoted(self.once)} AS\n"
            f"SELECT {names}, `__arrived` FROM (\n"
            f"  SELECT *, ROW_NUMBER() OVER (PARTITION BY {quoted(source.event_id)} ORDER BY `__arrived`) AS `__copy`\n"
            f"  FROM {quoted(source.name)}\n"
            "  WHERE CURRENT_WATERMARK(`__moment`) IS NULL\n"
            f"    OR `__moment` > TIMESTAMPADD(SECOND, -{reach}, CURRENT_WATERMARK(`__moment`))\n"
            ") WHERE `__copy` = 1",
        ]

    def number(self, name: str) -> str:
        """Reads a column as DOUBLE, encoded where the source says so."""
        encoding = self.source.encodings.get(name)
        if isinstance(encoding, Buckets):
            raise InvalidInput(
                f"source {self.source.name!r}: encode: {name}",
                encoding,
                "not make numbers by buckets on Flink, which has no CRC-32",
                "Count its different values, or give it Categories.",
            )
        if isinstance(encoding, Categories):
            whens = " ".join(f"WHEN {literal(value)} THEN {encoding.code(value)}e0" for value in encoding.values)
            return f"CASE WHEN {quoted(name)} IS NOT NULL THEN CASE {quoted(name)} {whens} ELSE -1e0 END END"
        if self.types[name] == "BOOLEAN":
            return f"CASE {quoted(name)} WHEN TRUE THEN 1e0 WHEN FALSE THEN 0e0 END"
        return f"CAST({quoted(name)} AS DOUBLE)"

    def _options(self) -> str:
        scheme, _, place = self.location.partition("://")
        if scheme == "kafka":
            servers, topic = kafka(place)
            options = {"connector": "kafka", "topic": topic, "properties.bootstrap.servers": servers}
            options |= {"properties.group.id": f"vitok-{self.source.name}", "scan.startup.mode": "earliest-offset"}
        elif scheme == "file":
            options = {"connector": "filesystem", "path": self.location}
        else:
            where = f"source {self.source.name!r}: location"
            raise InvalidInput(where, self.location, "begin with kafka:// or file://", _FIX)
        options["format"] = self.stream.format
        if self.stream.format == "json":
            options["json.timestamp-format.standard"] = "ISO-8601"
        return sql.options(options | dict(self.stream.options))


def kafka(place: str) -> tuple[str, str]:
    """Takes `host:9092/topic` apart.

    Raises:
        InvalidInput: If it is not of that form.
    """
    servers, mark, topic = place.partition("/")
    if not mark or not servers or not topic:
        raise InvalidInput("location", f"kafka://{place}", "look like kafka://host:9092/topic")
    return servers, topic
