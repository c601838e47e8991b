"""A view of windows compiled for the kernels: which numbers each event gives, and how features are made of them."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitok.clock import duration
from vitok.errors import InvalidInput
from vitok.features.aggregations import Aggregation, Condition, Rate, Ratio, Recent, TopK, Window
from vitok.features.fingerprints import fingerprint_texts
from vitok.features.sources import Encoding, Source

if TYPE_CHECKING:
    import polars as pl

    from vitok.features.views import View

COUNT, SUM, MEAN, DISTINCT, MIN, MAX, STD, FIRST, LAST, TOP, RECENT, RATIO, NUMBER, RATE = range(14)
_KINDS = {
    "sum": SUM,
    "mean": MEAN,
    "min": MIN,
    "max": MAX,
    "std": STD,
    "first": FIRST,
    "last": LAST,
    "distinct": DISTINCT,
}
# Features equal bit for bit however they were computed; the others are sums of floats in some order.
EXACT = frozenset({COUNT, DISTINCT, MIN, MAX, FIRST, LAST, TOP, RECENT, NUMBER})
EMPTY_IS_ZERO = frozenset({COUNT, SUM, DISTINCT, NUMBER, RATE})
ABSENT = np.int64(-(2**63))  # the bits of -0.0, which no code has because it is turned into 0.0


@dataclasses.dataclass(frozen=True)
class Input:
    """One number that an event gives: a column where conditions hold; "" stands for a one."""

    column: str
    where: tuple[Condition, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """How the features of a view are computed.

    Attributes:
        names: The features, in order; the first rows of `rows`.
        rows: Shape (width, 5), int64: kind, window, input (or code for DISTINCT and TOP), argument, other. `argument`
            is the rank of TOP and RECENT from 0, or the row above the line of RATIO and of RATE; `other` is the row
            below the line of RATIO. Rows after the features are parts of ratios and rates.
        scale: Shape (width,), float64: what RATE multiplies by.
        bounds: Shape (windows, 2), int64: span and hop, shortest first.
        inputs: Numbers that an event gives; NaN where it gives none.
        codes: Values that are counted by kind; ABSENT where there is none.
        source: Where they come from.
        lag: Microseconds after its event time at which an event is known, or -1 where the ingest time decides.
    """

    names: tuple[str, ...]
    rows: np.ndarray
    scale: np.ndarray
    bounds: np.ndarray
    inputs: tuple[Input, ...]
    codes: tuple[Input, ...]
    source: Source
    lag: int

    @property
    def width(self) -> int:
        """How many columns the kernels write: the features and the parts of ratios."""
        return len(self.rows)

    @functools.cached_property
    def empty(self) -> np.ndarray:
        """Values of the features where there is no event, shape (features,)."""
        kinds = self.rows[: len(self.names), 0]
        return np.where(np.isin(kinds, list(EMPTY_IS_ZERO)), 0.0, np.nan)

    @functools.cached_property
    def is_exact(self) -> np.ndarray:
        """Which features are equal bit for bit however they were computed, shape (features,)."""
        return np.isin(self.rows[: len(self.names), 0], list(EXACT))

    @functools.cached_property
    def kinds_of(self) -> tuple[frozenset[int], ...]:
        """Which kinds each input serves."""
        out: list[set[int]] = [set() for _ in self.inputs]
        for kind, _, index, _, _ in self.rows.tolist():
            if kind not in {COUNT, DISTINCT, TOP, RATIO, RATE}:
                out[index].add(kind)
        return tuple(frozenset(kinds) for kinds in out)

    @functools.cached_property
    def is_additive(self) -> bool:
        """Whether all features are counts, sums, means, or made of these: then a difference puts a value right."""
        return not self.codes and all(kinds <= {SUM, MEAN, NUMBER} for kinds in self.kinds_of)

    @functools.cached_property
    def has_order(self) -> bool:
        """Whether the order of events of the same instant matters: by ingest time, then by event id."""
        return any(kinds & {FIRST, LAST, RECENT} for kinds in self.kinds_of)

    def values(self, frame: "pl.DataFrame") -> np.ndarray:
        """Reads the inputs of many events, shape (events, inputs), float64; NaN where an event gives none.

        Raises:
            InvalidInput: If a column is missing, is text without an encoding, or holds an infinity.
        """
        import polars as pl

        out = np.empty((len(frame), len(self.inputs)))
        for index, item in enumerate(self.inputs):
            series = (
                _numbers(frame, item.column, self.source) if item.column else pl.repeat(1.0, len(frame), eager=True)
            )
            numbers = series.to_numpy()
            if item.where:
                numbers = np.where(_mask(frame, item.where, self.source), numbers, np.nan)
            if np.isinf(numbers).any():
                bad = float(numbers[np.isinf(numbers)][0])
                raise InvalidInput(
                    f"source {self.source.name!r}: {item.column}",
                    bad,
                    "be finite",
                    "Let the contract keep such rows out.",
                )
            out[:, index] = numbers
        return out

    def kinds_counted(self, frame: "pl.DataFrame") -> np.ndarray:
        """Reads the codes of many events, shape (events, codes), int64; ABSENT where an event gives none."""
        out = np.empty((len(frame), len(self.codes)), np.int64)
        for index, item in enumerate(self.codes):
            codes = _codes(frame, item.column, self.source)
            if item.where:
                codes = np.where(_mask(frame, item.where, self.source), codes, ABSENT)
            out[:, index] = codes
        return out

    def values_of_rows(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """As `values`, for a few events as mappings."""
        out = np.empty((len(rows), len(self.inputs)))
        for column, item in enumerate(self.inputs):
            encoding = self.source.encodings.get(item.column)
            for place, row in enumerate(rows):
                held = not item.where or all(_holds(row.get(name), how, value) for name, how, value in item.where)
                out[place, column] = _number(row, item.column, self.source, encoding) if held else math.nan
        return out

    def codes_of_rows(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """As `kinds_counted`, for a few events as mappings."""
        out = np.empty((len(rows), len(self.codes)), np.int64)
        for column, item in enumerate(self.codes):
            encoding = self.source.encodings.get(item.column)
            for place, row in enumerate(rows):
                held = not item.where or all(_holds(row.get(name), how, value) for name, how, value in item.where)
                out[place, column] = _code(row, item.column, self.source, encoding) if held else ABSENT
        return out


def compile_view(view: "View") -> Plan:
    """Compiles a view."""
    compiler = _Compiler(view)
    for item in view.aggregations:
        for span, window in zip(item.over, view.windows_of(item), strict=True):
            compiler.add(item, span, window)
    return compiler.plan()


class _Compiler:
    def __init__(self, view: "View") -> None:
        self.view = view
        self.windows = {window: place for place, window in enumerate(view.windows)}
        self.inputs: dict[Input, int] = {}
        self.codes: dict[Input, int] = {}
        self.rows: list[tuple[int, int, int, int, int]] = []
        self.scale: list[float] = []
        self.pending: list[tuple[int, Aggregation, Window]] = []

    def add(self, item: Aggregation, span: str, window: Window) -> None:
        if isinstance(item, Ratio):
            self.pending.append((len(self.rows), item, window))
            self._row(RATIO, window, -1)
        elif isinstance(item, Rate):
            self.pending.append((len(self.rows), item, window))
            self._row(RATE, window, -1, scale=duration(item.per) / duration(span))
        elif isinstance(item, TopK):
            for rank in range(item.k):
                self._row(TOP, window, self._code(item), rank)
        elif isinstance(item, Recent):
            for rank in range(item.n):
                self._row(RECENT, window, self._input(item), rank)
        else:
            self._simple(item, window)

    def plan(self) -> Plan:
        n_features = len(self.rows)
        for place, item, window in self.pending:
            upper = self._simple(item.upper if isinstance(item, Ratio) else item, window)
            lower = self._simple(item.lower, window) if isinstance(item, Ratio) else -1
            kind, window_place, index, _, _ = self.rows[place]
            self.rows[place] = (kind, window_place, index, upper, lower)
        names = self.view.feature_names
        if n_features != len(names):
            raise AssertionError((n_features, names))
        available = self.view.available_after
        return Plan(
            names=names,
            rows=np.array(self.rows, np.int64).reshape(-1, 5),
            scale=np.array(self.scale),
            bounds=np.array([(window.span, window.hop) for window in self.windows], np.int64).reshape(-1, 2),
            inputs=tuple(self.inputs),
            codes=tuple(self.codes),
            source=self.view.source,
            lag=-1 if available is None else available,
        )

    def _simple(self, item: Aggregation, window: Window) -> int:
        if item.kind in {"count", "rate"}:
            return self._row(NUMBER, window, self._input(item)) if item.where else self._row(COUNT, window, -1)
        if item.kind == "distinct":
            return self._row(DISTINCT, window, self._code(item))
        return self._row(_KINDS[item.kind], window, self._input(item))

    def _row(self, kind: int, window: Window, index: int, argument: int = -1, *, scale: float = 1.0) -> int:
        self.rows.append((kind, self.windows[window], index, argument, -1))
        self.scale.append(scale)
        return len(self.rows) - 1

    def _input(self, item: Aggregation) -> int:
        return self.inputs.setdefault(Input(item.column, item.where), len(self.inputs))

    def _code(self, item: Aggregation) -> int:
        return self.codes.setdefault(Input(item.column, item.where), len(self.codes))


def _column(frame: "pl.DataFrame", name: str, source: Source) -> "pl.Series":
    if name not in frame.columns:
        raise InvalidInput(f"source {source.name!r}: columns", frame.columns, f"hold {name}")
    return frame[name]


def encoded(series: "pl.Series", name: str, source: Source) -> "pl.Series":
    """Turns a column into float64 by the encoding of its source; nulls stay null, NaN becomes null.

    Raises:
        InvalidInput: If it is neither numeric nor encoded.
    """
    import polars as pl

    encoding = source.encodings.get(name)
    if encoding is not None:
        different = series.cast(pl.String).unique().drop_nulls().to_list()
        codes = [encoding.code(value) for value in different]
        return series.cast(pl.String).replace_strict(different, codes, default=None, return_dtype=pl.Float64)
    kind = series.dtype
    if not (kind.is_numeric() or kind.is_temporal() or kind in {pl.Boolean, pl.Null}):
        raise InvalidInput(
            f"source {source.name!r}: {name}",
            str(kind),
            "be numeric where a number is wanted",
            f"Give the source an encoding: encode={{{name!r}: Categories((...))}}.",
        )
    if kind.is_temporal():
        series = series.cast(pl.Datetime("us")).to_physical()
    return series.cast(pl.Float64).fill_nan(None)


def _numbers(frame: "pl.DataFrame", name: str, source: Source) -> "pl.Series":
    return encoded(_column(frame, name, source), name, source)


def _codes(frame: "pl.DataFrame", name: str, source: Source) -> np.ndarray:
    import polars as pl

    series = _column(frame, name, source)
    if name not in source.encodings and isinstance(series.dtype, pl.String | pl.Categorical | pl.Enum):
        text = series.cast(pl.String)
        codes = fingerprint_texts(text.fill_null(""))[:, 0].view(np.int64)
        codes = np.where(codes == ABSENT, ABSENT + 1, codes)
        return np.where(text.is_null().to_numpy(), ABSENT, codes)
    if series.dtype.is_integer() and name not in source.encodings and len(series) and _is_wide(series):
        return _wide(series)
    numbers = encoded(series, name, source).to_numpy() + 0.0
    return np.where(np.isnan(numbers), ABSENT, numbers.view(np.int64))


def _is_wide(series: "pl.Series") -> bool:
    low, high = series.min(), series.max()
    return low is not None and (int(low) < -(2**53) or int(high) > 2**53)  # type: ignore[arg-type]


def _wide(series: "pl.Series") -> np.ndarray:
    # Whole numbers that a float cannot tell apart are counted by their text.
    return np.array([ABSENT if value is None else _code_of(value) for value in series], np.int64)


def _code_of(value: Any) -> np.int64:
    if isinstance(value, str) or (isinstance(value, int) and abs(value) > 2**53):
        code = fingerprint_texts([str(value)])[0, 0].view(np.int64)
        return np.int64(ABSENT + 1) if code == ABSENT else np.int64(code)
    number = np.float64(value) + 0.0
    return ABSENT if np.isnan(number) else np.int64(number.view(np.int64))


def _mask(frame: "pl.DataFrame", where: tuple[Condition, ...], source: Source) -> np.ndarray:
    import polars as pl

    held = np.ones(len(frame), bool)
    for name, operator, value in where:
        series = _column(frame, name, source)
        try:
            if operator in {"in", "not in"}:
                found = series.is_in(list(value))
                found = found if operator == "in" else ~found
            else:
                found = _COMPARE[operator](series, value)
            there = series.is_not_null() & ~series.is_nan() if series.dtype.is_float() else series.is_not_null()
            held &= (found & there).fill_null(value=False).to_numpy()
        except (pl.exceptions.PolarsError, TypeError) as error:
            raise InvalidInput(
                f"source {source.name!r}: where {name} {operator}", value, f"be comparable with {series.dtype}"
            ) from error
    return held


_COMPARE: dict[str, Any] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    "in": lambda a, b: a in b,
    "not in": lambda a, b: a not in b,
}


def _holds(seen: Any, operator: str, value: Any) -> bool:
    if seen is None or seen != seen:  # a NaN meets nothing, as a null does
        return False
    try:
        return bool(_COMPARE[operator](seen, value))
    except TypeError:
        raise InvalidInput(f"where {operator}", seen, f"be comparable with {value!r}") from None


def _number(row: Mapping[str, Any], name: str, source: Source, encoding: Encoding | None) -> float:
    if not name:
        return 1.0
    try:
        value = row[name]
    except KeyError:
        raise InvalidInput(f"source {source.name!r}: columns", sorted(row), f"hold {name}") from None
    if value is None:
        return math.nan
    if encoding is not None:
        return encoding.code(value)
    if type(value) is not float and not isinstance(value, int | float | np.number | np.bool_):
        raise InvalidInput(
            f"source {source.name!r}: {name}",
            value,
            "be a number",
            f"Give the source an encoding: encode={{{name!r}: Categories((...))}}.",
        )
    number = float(value)
    if math.isinf(number):
        raise InvalidInput(
            f"source {source.name!r}: {name}", number, "be finite", "Let the contract keep such rows out."
        )
    return number


def _code(row: Mapping[str, Any], name: str, source: Source, encoding: Encoding | None) -> np.int64:
    if name not in row:
        raise InvalidInput(f"source {source.name!r}: columns", sorted(row), f"hold {name}")
    value = row[name]
    if value is None:
        return ABSENT
    return _code_of(encoding.code(value) if encoding is not None else value)
