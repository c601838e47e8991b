"""Events taken apart: who, when, which id, and the numbers that each view wants of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from vitok.errors import InvalidInput
from vitok.features.fingerprints import fingerprint_texts
from vitok.features.sources import SEPARATOR, Entity, Source, key_text

if TYPE_CHECKING:
    import polars as pl

    from vitok.features.views import View

_FURTHEST_MS = (2**63 - 1) // 1000
_MEND = "Let the contract keep such rows out."


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Events:
    """Some events of one source, as columns.

    Attributes:
        source: Where they come from.
        ids: Shape (n, 2), uint64: fingerprints of their ids.
        times: Shape (n,), int64: event times in microseconds.
        ingests: Shape (n,), int64: when each became known; 0 where the source does not say.
        keys: Key texts by entity: a polars series, or a list where the events are few.
        values: By name of the view, shape (n, inputs).
        codes: By name of the view, shape (n, codes).
    """

    source: Source
    ids: np.ndarray
    times: np.ndarray
    ingests: np.ndarray
    keys: "Mapping[Entity, pl.Series | list[str]]"
    values: Mapping[str, np.ndarray]
    codes: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        """How many events."""
        return len(self.times)

    @property
    def ties(self) -> np.ndarray:
        """What orders events of one instant: the first word of the fingerprint, as int64."""
        return self.ids[:, 0].view(np.int64) if self.ids.flags.c_contiguous else self.ids[:, 0].astype(np.int64)

    @classmethod
    def of_frame(cls, source: Source, views: "Sequence[View]", frame: "pl.DataFrame") -> Self:
        """Takes a frame apart.

        Raises:
            InvalidInput: If a column is missing or of the wrong type, or an id, key or time is null.
        """
        where = f"source {source.name!r}"
        ids = texts(frame, source.event_id, where)
        return cls(
            source=source,
            ids=fingerprint_texts(ids),
            times=microseconds(frame, source.event_time, where),
            ingests=microseconds(frame, source.ingest_time, where)
            if source.ingest_time
            else np.zeros(len(frame), np.int64),
            keys={view.entity: key_texts(frame, view.entity, where) for view in views},
            values={view.name: view.plan.values(frame) for view in views},
            codes={view.name: view.plan.kinds_counted(frame) for view in views},
        )

    @classmethod
    def of_rows(
        cls,
        source: Source,
        views: "Sequence[View]",
        ids: Sequence[str],
        times: Sequence[int],
        rows: Sequence[Mapping[str, Any]],
    ) -> Self:
        """Takes a few events as mappings apart.

        Raises:
            InvalidInput: If a column is missing or of the wrong type, or an id is empty, or a key is null.
        """
        entities = dict.fromkeys(view.entity for view in views)
        if not all(ids):
            raise InvalidInput(f"source {source.name!r}: {source.event_id}", "", "not be empty")
        ingests = [row.get(source.ingest_time) for row in rows] if source.ingest_time else [0] * len(rows)
        if not all(isinstance(moment, int | np.integer) for moment in ingests):
            raise InvalidInput(f"source {source.name!r}: {source.ingest_time}", ingests, "be whole microseconds")
        return cls(
            source=source,
            ids=fingerprint_texts(ids),
            times=np.array(times, np.int64),
            ingests=np.array(ingests, np.int64),
            keys={entity: [entity.text(row) for row in rows] for entity in entities},
            values={view.name: view.plan.values_of_rows(rows) for view in views},
            codes={view.name: view.plan.codes_of_rows(rows) for view in views},
        )


def texts(frame: "pl.DataFrame", name: str, where: str) -> "pl.Series":
    """Reads a column of ids or keys as texts.

    Raises:
        InvalidInput: If it is missing, has a null, or is neither text nor whole numbers.
    """
    import polars as pl

    if name not in frame.columns:
        raise InvalidInput(f"{where}: columns", frame.columns, f"hold {name}")
    series = frame[name]
    if series.null_count():
        raise InvalidInput(f"{where}: {name}", None, "not be null", _MEND)
    is_text = isinstance(series.dtype, pl.String | pl.Categorical | pl.Enum)
    if not (series.dtype.is_integer() or is_text or not len(series)):
        raise InvalidInput(f"{where}: {name}", str(series.dtype), "be text or whole numbers", "Cast it to text first.")
    return series.cast(pl.String)


def key_texts(frame: "pl.DataFrame", entity: Entity, where: str) -> "pl.Series":
    """Reads the key of an entity as one text a row.

    Raises:
        InvalidInput: If a part is missing, has a null or an empty text, or is neither text nor whole numbers.
    """
    import polars as pl

    parts = [texts(frame, name, where) for name in entity.keys]
    for name, part in zip(entity.keys, parts, strict=True):
        if len(part) and (part == "").any():
            raise InvalidInput(f"{where}: {name}", "", "not be empty", _MEND)
    if len(parts) == 1:
        return parts[0]
    names = [str(place) for place in range(len(parts))]
    joined = pl.DataFrame([part.alias(name) for name, part in zip(names, parts, strict=True)])
    return joined.select(pl.concat_str(names, separator=SEPARATOR)).to_series()


def microseconds(frame: "pl.DataFrame", name: str, where: str) -> np.ndarray:
    """Reads a column of times as microseconds since 1970 UTC; without a zone it is taken as UTC.

    Raises:
        InvalidInput: If it is missing, has a null, or is neither a time nor a date.
    """
    import polars as pl

    if name not in frame.columns:
        raise InvalidInput(f"{where}: columns", frame.columns, f"hold {name}")
    series = frame[name]
    if not isinstance(series.dtype, pl.Datetime) and series.dtype != pl.Date:
        raise InvalidInput(
            f"{where}: {name}",
            str(series.dtype),
            "be a Datetime or Date",
            "Whole numbers: pl.from_epoch. Text: pl.col(...).str.to_datetime(time_zone='UTC').",
        )
    if series.null_count():
        raise InvalidInput(f"{where}: {name}", None, "not be null", _MEND)
    if isinstance(series.dtype, pl.Datetime) and series.dtype.time_zone not in {None, "UTC"}:
        series = series.dt.convert_time_zone("UTC")
    if isinstance(series.dtype, pl.Datetime) and series.dtype.time_unit == "ms":
        furthest = series.to_physical().abs().max()
        if isinstance(furthest, int) and furthest > _FURTHEST_MS:
            raise InvalidInput(f"{where}: {name}", f"{furthest} ms", "fit 64 bits in microseconds", _MEND)
    moments = series.cast(pl.Datetime("us", getattr(series.dtype, "time_zone", None))).to_physical()
    return np.array(moments.to_numpy(), np.int64)  # a copy: the kernels are compiled for arrays that can be written


def one_key(entity: Entity, keys: Mapping[str, Any]) -> str:
    """Returns the key of one entity as text.

    Raises:
        InvalidInput: If a part is missing or neither text nor a whole number.
    """
    return SEPARATOR.join(key_text(name, keys.get(name)) for name in entity.keys)
