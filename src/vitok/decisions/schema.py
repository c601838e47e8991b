"""What a log holds: the columns of a decision log, of an outcome log, and how a batch of rows becomes Arrow.

Two shapes of one table. In the open segment the features of a row lie together in one fixed-size list, because
writing sixty columns of a few rows each costs four times as much as writing one. In a sealed segment and in every
frame that a reader gets, each feature is a column `f_<name>` of its own.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vitok.decision import Decision
from vitok.decisions.messages import Constant, MessageMaker
from vitok.errors import InvalidInput
from vitok.ids import Made

METADATA_KEY = b"vitok.log"
REMOVED_KEY = b"vitok.removed"
OFFSETS_KEY = b"vitok.offsets"
FEATURE_PREFIX = "f_"
_FEATURES = "features"
_TIME = pa.timestamp("us", tz="UTC")
_REQUEST_TYPES = {"float64": pa.float64(), "int64": pa.int64(), "string": pa.string()}
LATER = ("tenant", "team", "trace_id")
"""Columns that logs have not had from the beginning: where a segment is older, its rows have nulls there.

An entity or a field of the request may have such a name, as in logs that are older; then it takes the column's place.
"""

_FIXED = frozenset(Decision.__struct_fields__) - frozenset(LATER)
_RESERVED = _FIXED | {"label", "label_time", "label_ingest_time"}


@dataclasses.dataclass(frozen=True)
class LogSchema:
    """What one system's decisions carry besides the columns that all decisions have.

    Entities and request fields keep their own names as columns of the log, so a name stands for one thing only;
    a key that is an entity is not repeated among the request's fields.

    Args:
        system: Which system decides, such as `"fraud"`.
        entities: Names of the entity keys, each a string column.
        request: The request's own fields as `(name, type)`; a type is `"float64"`, `"int64"` or `"string"`.
        features: Names of the features, in the order in which the model takes them.

    Raises:
        InvalidInput: If a name is empty, given twice or a column that every log has, or a type is unknown.

    Example:
        >>> schema = LogSchema("fraud", ("customer_id",), (("amount", "float64"),), ("count_1d", "mean_1d"))
        >>> schema.columns[-5:]
        ('latency_us', 'cost', 'tenant', 'team', 'trace_id')
        >>> LogSchema.from_dict(schema.to_dict()) == schema
        True
        >>> LogSchema("fraud", (), (("score", "float64"),), ())
        Traceback (most recent call last):
        vitok.errors.InvalidInput: request: got 'score', must not be a column that every log has. Rename the field
    """

    system: str
    entities: tuple[str, ...]
    request: tuple[tuple[str, str], ...]
    features: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.system:
            raise InvalidInput("system", self.system, "name the system that decides")
        seen: set[str] = set()
        named = [("entities", name) for name in self.entities] + [("request", name) for name, _ in self.request]
        for field, name in named:
            if not name or name.startswith(FEATURE_PREFIX):
                raise InvalidInput(field, name, f"be a name that does not start with {FEATURE_PREFIX!r}")
            if name in _RESERVED:
                raise InvalidInput(field, name, "not be a column that every log has", "Rename the field")
            if name in seen:
                raise InvalidInput(field, name, "be named once", "An entity's key need not be a request field too")
            seen.add(name)
        for name, kind in self.request:
            if kind not in _REQUEST_TYPES:
                raise InvalidInput(f"request.{name}", kind, f"be one of {', '.join(_REQUEST_TYPES)}")
        if len(set(self.features)) != len(self.features) or "" in self.features:
            raise InvalidInput("features", self.features, "be names, each given once")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the log as readers see them, in order."""
        return tuple(readable_schema(self).names)

    @property
    def later(self) -> tuple[str, ...]:
        """Those of `LATER` that no field of this log has the name of."""
        own = {*self.entities, *(name for name, _ in self.request)}
        return tuple(name for name in LATER if name not in own)

    @property
    def content_hash(self) -> str:
        """The first 16 hex digits of SHA-256 over the schema; equal schemas have equal hashes.

        Example:
            >>> LogSchema("fraud", (), (), ("count_1d",)).content_hash
            'fd80b268a4c82247'
        """
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Returns the schema as plain lists and strings, fit for JSON."""
        return {
            "system": self.system,
            "entities": list(self.entities),
            "request": [list(field) for field in self.request],
            "features": list(self.features),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LogSchema":
        """Reads what `to_dict` wrote."""
        return cls(
            system=data["system"],
            entities=tuple(data["entities"]),
            request=tuple((name, kind) for name, kind in data["request"]),
            features=tuple(data["features"]),
        )


_EMPTY = Constant("")


class DecisionBlock(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A batch of n decisions by columns, in the order in which they were taken.

    The fields mean what they mean in `vitok.decision.Decision`; what differs is the shape. A column that has one
    value in all rows may be a `Constant`.

    Attributes:
        decision_id: n times the 16 bytes of a UUID version 7.
        request_id: n texts, or ids that were made together, whose texts are meant.
        event_time: n times, int64 microseconds UTC.
        ingest_time: n times, int64 microseconds UTC.
        entities: One column of n texts for each entity of the schema.
        request: One column of n values for each request field of the schema; None where absent.
        features: float64 of shape (n, number of features); NaN where there was no value.
        feature_status: n texts.
        model_version: n texts.
        stage: n texts.
        route: n texts.
        route_reason: n texts.
        score: n numbers; NaN where no model answered.
        probability: n numbers; NaN where no model answered.
        shadow_version: n texts or None.
        shadow_probability: n numbers; NaN where no shadow answered, which the log keeps as null.
        policy_version: n texts.
        action: n texts.
        propensity: n numbers.
        latency_us: n whole numbers of microseconds, below 2**31.
        cost: n numbers, processor seconds.
        tenant: n texts, empty where it is not known who asked.
        team: n texts, empty where nobody is charged.
        trace_id: n texts of 32 hex digits, empty where there is no trace.
    """

    decision_id: Sequence[bytes]
    request_id: Sequence[str] | Made
    event_time: Sequence[int] | npt.NDArray[np.int64]
    ingest_time: Sequence[int] | npt.NDArray[np.int64]
    entities: Sequence[Sequence[str]]
    request: Sequence[Sequence[Any]]
    features: npt.NDArray[np.float64]
    feature_status: Sequence[str] | Constant
    model_version: Sequence[str] | Constant
    stage: Sequence[str] | Constant
    route: Sequence[str] | Constant
    route_reason: Sequence[str] | Constant
    score: Sequence[float] | npt.NDArray[np.float64]
    probability: Sequence[float] | npt.NDArray[np.float64]
    shadow_version: Sequence[str | None] | Constant
    shadow_probability: Sequence[float] | npt.NDArray[np.float64] | Constant
    policy_version: Sequence[str] | Constant
    action: Sequence[str] | Constant
    propensity: Sequence[float] | npt.NDArray[np.float64] | Constant
    latency_us: Sequence[int] | npt.NDArray[np.int32]
    cost: Sequence[float] | npt.NDArray[np.float64] | Constant
    tenant: Sequence[str] | Constant = _EMPTY
    team: Sequence[str] | Constant = _EMPTY
    trace_id: Sequence[str] | Constant = _EMPTY

    def __len__(self) -> int:
        return len(self.decision_id)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeBlock:
    """A batch of n outcomes by columns; the fields mean what they mean in `vitok.decision.Outcome`.

    Attributes:
        request_id: n texts.
        kind: n texts.
        value: n finite numbers.
        event_time: n times, int64 microseconds UTC.
        ingest_time: n times, int64 microseconds UTC; 0 lets the log stamp its own time.
        source: n texts.
        supersedes: n truth values.
    """

    request_id: Sequence[str]
    kind: Sequence[str]
    value: Sequence[float] | npt.NDArray[np.float64]
    event_time: Sequence[int] | npt.NDArray[np.int64]
    ingest_time: Sequence[int] | npt.NDArray[np.int64]
    source: Sequence[str]
    supersedes: Sequence[bool] | npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.request_id)


_HEAD: list[tuple[str, pa.DataType, bool]] = [
    ("decision_id", pa.binary(16), False),
    ("request_id", pa.string(), False),
    ("event_time", _TIME, False),
    ("ingest_time", _TIME, False),
]
_TAIL: list[tuple[str, pa.DataType, bool]] = [
    ("feature_status", pa.string(), False),
    ("model_version", pa.string(), False),
    ("stage", pa.string(), False),
    ("route", pa.string(), False),
    ("route_reason", pa.string(), False),
    ("score", pa.float64(), False),
    ("probability", pa.float64(), False),
    ("shadow_version", pa.string(), True),
    ("shadow_probability", pa.float64(), True),
    ("policy_version", pa.string(), False),
    ("action", pa.string(), False),
    ("propensity", pa.float64(), False),
    ("latency_us", pa.int32(), False),
    ("cost", pa.float64(), False),
]
_OUTCOME: list[tuple[str, pa.DataType, bool]] = [
    ("request_id", pa.string(), False),
    ("kind", pa.string(), False),
    ("value", pa.float64(), False),
    ("event_time", _TIME, False),
    ("ingest_time", _TIME, False),
    ("source", pa.string(), False),
    ("supersedes", pa.bool_(), False),
]


def _fields(columns: list[tuple[str, pa.DataType, bool]]) -> list[pa.Field]:
    return [pa.field(name, kind, nullable=nullable) for name, kind, nullable in columns]


def _metadata(kind: str, schema: LogSchema | None) -> dict[bytes, bytes]:
    content = {"kind": kind} | ({} if schema is None else {"schema": schema.to_dict()})
    return {METADATA_KEY: json.dumps(content, separators=(",", ":")).encode()}


def _own_fields(schema: LogSchema) -> list[pa.Field]:
    entities = [pa.field(name, pa.string(), nullable=False) for name in schema.entities]
    return entities + [pa.field(name, _REQUEST_TYPES[kind]) for name, kind in schema.request]


def open_schema(schema: LogSchema) -> pa.Schema:
    """Returns the Arrow schema of an open segment of decisions: features in one fixed-size list."""
    # An Arrow list of size 0 cannot tell how many rows it has, so a log without features has no such column.
    listed = [pa.field(_FEATURES, pa.list_(pa.float64(), len(schema.features)), nullable=False)]
    later = [pa.field(name, pa.string(), nullable=False) for name in schema.later]
    fields = [*_fields(_HEAD), *_own_fields(schema), *(listed if schema.features else []), *_fields(_TAIL), *later]
    return pa.schema(fields, metadata=_metadata("decisions", schema))


@functools.lru_cache(maxsize=64)
def readable_schema(schema: LogSchema) -> pa.Schema:
    """Returns the Arrow schema of a sealed segment and of every reader's frame: a column for each feature."""
    head = _fields(_HEAD)
    fields = [*head[:2], pa.field("system", pa.string(), nullable=False), *head[2:], *_own_fields(schema)]
    fields += [pa.field(FEATURE_PREFIX + name, pa.float64(), nullable=False) for name in schema.features]
    later = [pa.field(name, pa.string()) for name in schema.later]
    return pa.schema([*fields, *_fields(_TAIL), *later], metadata=_metadata("decisions", schema))


def outcome_schema() -> pa.Schema:
    """Returns the Arrow schema of outcomes, which is the same in open and sealed segments."""
    return pa.schema(_fields(_OUTCOME), metadata=_metadata("outcomes", None))


def schema_of(arrow: pa.Schema) -> LogSchema | None:
    """Reads the schema that a segment of decisions carries; None for a segment of outcomes."""
    return _schema_in((arrow.metadata or {}).get(METADATA_KEY, b"{}"))


@functools.lru_cache(maxsize=64)
def _schema_in(text: bytes) -> LogSchema | None:
    content = json.loads(text)
    return LogSchema.from_dict(content["schema"]) if "schema" in content else None


def decision_message(block: DecisionBlock, schema: LogSchema, maker: MessageMaker) -> bytes:
    """Turns a block into the Arrow message of one batch, of the schema that `open_schema(schema)` gave.

    Raises:
        InvalidInput: If a column has another length than the rest, a wrong type, or a null where none may be.
    """
    n, k = len(block.decision_id), len(schema.features)
    features = np.ascontiguousarray(block.features, dtype=np.float64)
    if features.shape != (n, k):
        raise InvalidInput("features", features.shape, f"have the shape ({n}, {k}): decisions, features of the schema")
    if len(block.entities) != len(schema.entities):
        raise InvalidInput("entities", len(block.entities), f"be one column for each of {schema.entities}")
    if len(block.request) != len(schema.request):
        raise InvalidInput("request", len(block.request), f"be one column for each of {schema.request}")
    shadow: Any = block.shadow_probability
    if type(shadow) is not Constant:
        shadow = np.asarray(shadow, dtype=np.float64)
    values = [
        *(block.decision_id, block.request_id, block.event_time, block.ingest_time),
        *block.entities,
        *block.request,
        *((features,) if k else ()),
        *(block.feature_status, block.model_version, block.stage, block.route, block.route_reason),
        *(block.score, block.probability, block.shadow_version, shadow),
        *(block.policy_version, block.action, block.propensity, block.latency_us, block.cost),
        *(getattr(block, name) for name in schema.later),
    ]
    return maker.make(values, n)


def outcome_message(block: OutcomeBlock, ingest_time: npt.NDArray[np.int64], maker: MessageMaker) -> bytes:
    """Turns outcomes into the Arrow message of one batch, with `ingest_time` in place of the block's own.

    Raises:
        InvalidInput: If a column has another length than the rest, a wrong type, a null, or a value is not finite.
    """
    value = np.asarray(block.value, dtype=np.float64)
    if not np.isfinite(value).all():
        raise InvalidInput("value", float(value[~np.isfinite(value)][0]), "be a finite number")
    columns = [block.request_id, block.kind, value, block.event_time, ingest_time, block.source, block.supersedes]
    return maker.make(columns, len(block.request_id))


def removed_rows(metadata: Mapping[bytes, bytes] | None) -> npt.NDArray[np.int64]:
    """Reads from what a sealed segment carries which of its rows were deleted, by their numbers at its sealing.

    Example:
        >>> removed_rows({REMOVED_KEY: b"[[3, 2], [9, 1]]"})
        array([3, 4, 9])
    """
    ranges = json.loads((metadata or {}).get(REMOVED_KEY, b"[]"))
    if not ranges:
        return np.empty(0, np.int64)
    return np.concatenate([np.arange(first, first + n, dtype=np.int64) for first, n in ranges])


def stored_names(arrow: pa.Schema, columns: Collection[str]) -> list[str]:
    """Returns the columns of an open segment that are needed to give some of those that readers see.

    Those that it does not have are left out; there is always one, by which the rows can be counted.

    Example:
        >>> arrow = open_schema(LogSchema("fraud", (), (), ("count_1d",)))
        >>> stored_names(arrow, ["f_count_1d", "request_id", "nothing"])
        ['request_id', 'features']
    """
    listed = _FEATURES in arrow.names and any(name.startswith(FEATURE_PREFIX) for name in columns)
    wanted = {*columns, _FEATURES} if listed else {*columns} - {_FEATURES}
    return [name for name in arrow.names if name in wanted] or ["event_time"]


def readable(table: pa.Table, columns: Collection[str] | None = None) -> pa.Table:
    """Gives rows of a segment the columns that readers see; a table that has them is returned as it is.

    Args:
        table: The rows as they lie in the segment, at least with what `stored_names` gives.
        columns: Columns wanted, those among them that there are; None for all.
    """
    schema = schema_of(table.schema)
    if schema is None:
        return table if columns is None else table.select([name for name in table.schema.names if name in columns])
    if "system" in table.schema.names:
        for name in schema.later:
            if name not in table.schema.names:
                table = table.append_column(pa.field(name, pa.string()), pa.nulls(table.num_rows, pa.string()))
        return table if columns is None else table.select([name for name in table.schema.names if name in columns])
    table = table.combine_chunks()
    target = readable_schema(schema)
    if columns is not None:
        target = pa.schema([field for field in target if field.name in columns], metadata=target.metadata)
    n, k = table.num_rows, len(schema.features)
    position = {FEATURE_PREFIX + name: index for index, name in enumerate(schema.features)}
    listed = [name for name in target.names if name in position]
    flat = pa.array(np.empty(0))
    if n and listed:
        # One transposing copy: the features of a row lie together, and each column wants its own run of memory.
        matrix = table.column(_FEATURES).chunk(0).flatten().to_numpy().reshape(n, k)
        if len(listed) < k:
            matrix = matrix[:, [position[name] for name in listed]]
        flat = pa.array(np.ascontiguousarray(matrix.T).reshape(-1))
    place = {name: index for index, name in enumerate(listed)}
    found: list[Any] = []
    for name in target.names:
        if name == "system":
            found.append(pa.repeat(schema.system, n))
        elif name in place:
            found.append(flat.slice(place[name] * n, n))
        elif name in schema.later and name not in table.schema.names:
            found.append(pa.nulls(n, pa.string()))
        else:
            found.append(table.column(name))
    return pa.table(found, schema=target)
