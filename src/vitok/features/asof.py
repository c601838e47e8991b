"""The newest row of an entity at past moments: how rows are packed, which one a question sees, and what it gives."""

from typing import TYPE_CHECKING, Any

import numpy as np

from vitok.errors import InvalidInput
from vitok.features.answers import Answers, Picked
from vitok.features.order_kernels import newest
from vitok.features.plan import encoded
from vitok.features.rows import declared
from vitok.features.sources import unique
from vitok.features.sweep_kernels import Questions
from vitok.features.views import Latest

if TYPE_CHECKING:
    import polars as pl

    from vitok.features.ordered import Ordered

_LETTERS = {"float64": "f8", "int64": "i8", "float32": "f4", "int32": "i4", "bool": "u1"}
_HAS_NAN = {"float64", "float32"}


class AsOf:
    """Computes the features of a view of latest values.

    A row is packed into whole words: its columns by falling width, then a byte for each whole number or truth value
    that says whether it is null. A null float is NaN.

    Args:
        view: The view.

    Attributes:
        view: The view.
        columns: Columns of the source that it reads besides keys, times and ids.
        has_order: Whether events of one instant must come in the order of their ids; they come as they arrived.
        width: Words that it keeps of a row.
        empty: Shape (width,), int64: the packed row of an entity without values.
    """

    has_order = False

    def __init__(self, view: Latest) -> None:
        self.view = view
        self.columns = unique((*view.columns, view.source.deleted))
        places = sorted(range(len(view.columns)), key=lambda place: -np.dtype(_LETTERS[view.dtypes[place]]).itemsize)
        fields: list[tuple[str, Any]] = [(f"v{place}", _LETTERS[view.dtypes[place]]) for place in places]
        fields += [(f"n{place}", "u1") for place in places if view.dtypes[place] not in _HAS_NAN]
        size = np.dtype(fields).itemsize
        if size % 8:
            fields.append(("rest", "u1", (8 - size % 8,)))  # type: ignore[arg-type]
        self.dtype = np.dtype(fields)
        self.width = self.dtype.itemsize // 8
        self._nothing = np.zeros(1, self.dtype)
        for place, dtype in enumerate(view.dtypes):
            if dtype in _HAS_NAN:
                self._nothing[f"v{place}"] = np.nan
            else:
                self._nothing[f"n{place}"] = 1
        self.empty = self._nothing.view(np.int64)

    def words(self, frame: "pl.DataFrame") -> np.ndarray:
        """Packs rows, shape (rows, width), int64; those that end an entity's values hold nothing.

        Raises:
            InvalidInput: If a column is neither numeric nor encoded, or a value does not fit its declared type.
        """
        view, source = self.view, self.view.source
        packed = np.zeros(len(frame), self.dtype)
        for place, (name, dtype) in enumerate(zip(view.columns, view.dtypes, strict=True)):
            values, null = _declared(frame[name], name, dtype, view)
            packed[f"v{place}"] = values
            if dtype not in _HAS_NAN:
                packed[f"n{place}"] = null
        if source.deleted:
            packed[_is_deleted(frame, source.deleted, f"source {source.name!r}")] = self._nothing[0]
        return packed.view(np.int64).reshape(len(frame), self.width)

    def answer(self, events: "Ordered", part: int, asked: Questions, n_rows: int) -> Answers:
        """Answers the questions of one partition."""
        view = self.view
        rows = events.parts[part]
        rows[-1] = self.empty
        places = np.full(n_rows, len(rows) - 1, np.int64)
        shift = max((view.available_after or 0) - 1, 0)
        by_ingest = view.available_after is None
        newest(*asked, events.start, events.order, events.ranks, by_ingest, shift, view.max_age, places)
        return Picked(rows, places)

    def columns_of(self, words: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Takes packed rows apart.

        Args:
            words: Shape (rows, width), int64.

        Returns:
            For each feature its values in the declared type and which are null, both of shape (rows,).
        """
        packed = np.ascontiguousarray(words).view(self.dtype).reshape(len(words))
        out = []
        for place, dtype in enumerate(self.view.dtypes):
            values = np.ascontiguousarray(packed[f"v{place}"])
            null = np.isnan(values) if dtype in _HAS_NAN else packed[f"n{place}"].astype(np.bool_)
            out.append((values.astype(np.bool_) if dtype == "bool" else values, null))
        return out


def _declared(column: "pl.Series", name: str, dtype: str, view: Latest) -> tuple[np.ndarray, np.ndarray]:
    import polars as pl

    where = f"source {view.source.name!r}: {name}"
    if dtype == "float32" and column.dtype == pl.Float32 and name not in view.source.encodings:
        # The common case, in two looks instead of ten.
        values = column.to_numpy()
        if not np.isinf(values).any():
            return values, np.isnan(values)
    if name in view.source.encodings or not (column.dtype.is_numeric() or column.dtype in {pl.Boolean, pl.Null}):
        column = encoded(column, name, view.source)
    if column.dtype == pl.Null:
        column = column.cast(pl.Float64)
    return declared(column, dtype, where)


def _is_deleted(frame: "pl.DataFrame", name: str, where: str) -> np.ndarray:
    import polars as pl

    column = frame[name]
    if column.dtype not in {pl.Boolean, pl.Null}:
        raise InvalidInput(f"{where}: {name}", str(column.dtype), "be true or false", "Cast it to Boolean.")
    return column.cast(pl.Boolean).fill_null(value=False).to_numpy()
