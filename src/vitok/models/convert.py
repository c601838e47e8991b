"""From a trained model to the files of a package, held against the model itself on data.

    converted = convert(model, X_held_out, names=["amount", "hour"])
    print(converted)                                  # how far the two lie apart, and which decisions turn
    registry.register("fraud", converted.files(), now=now(), actor="train")

Trees of LightGBM, XGBoost, CatBoost and scikit-learn become `model.forest`, whose raw scores equal the library's in
every bit; everything else becomes `model.onnx`. ONNX holds most models in 32 bits: scores differ in the seventh
place, and a value between two 32-bit numbers may take the other branch of a tree. So decisions are compared as well
as numbers, and a model that differs by more than a bound is refused.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitok.errors import GateRefused, InvalidInput
from vitok.models.comparison import Comparison, compare
from vitok.models.convert_sources import Source, columns_of, read_source
from vitok.models.forest import Forest
from vitok.models.onnx_export import INPUT, export
from vitok.models.onnx_scoring import OnnxScorer

FOREST, ONNX, SIGNATURE, EXAMPLES, CONVERSION = (
    "model.forest",
    "model.onnx",
    "signature.json",
    "examples.json",
    "conversion.json",
)
ENGINES = ("forest", "onnx")
# After equal raw scores the links may differ in the last place.
_LAST_PLACES = 1e-12
_ALONE = 8
_Rows = NDArray[Any] | dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A model in the form that it is served in.

    Attributes:
        library: Where it comes from.
        kind: Name of its class.
        engine: What runs it: `"forest"`, the tree kernel, or `"onnx"`, ONNX Runtime.
        content: The model file.
        names: Features in order.
        dtype: Type of the rows that it takes.
        probability: Whether it scores probabilities, else values.
        comparison: Its scores against the model's own. For values the differences are relative to the larger of 1 and
            the value.
        raw_equal: Whether the scores before the link are equal in every bit; None where the library gives none.
        bound: The largest difference that was allowed.
        notes: What was tried first, and why it was not taken.
        examples: Rows and expected scores, as `examples.json` holds them.
    """

    library: str
    kind: str
    engine: str
    content: bytes = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    dtype: np.dtype[Any]
    probability: bool
    comparison: Comparison
    raw_equal: bool | None
    bound: float
    notes: tuple[str, ...]
    examples: Mapping[str, Any] = field(repr=False)

    def files(self) -> dict[str, Any]:
        """Returns the files of a package: the model, its signature, examples and what the comparison found."""
        return {
            FOREST if self.engine == "forest" else ONNX: self.content,
            SIGNATURE: {
                "inputs": list(self.names),
                "dtype": str(self.dtype),
                "output": "probability" if self.probability else "value",
                "engine": self.engine,
                "library": self.library,
                "model": self.kind,
            },
            EXAMPLES: dict(self.examples),
            CONVERSION: {**self.comparison.to_dict(), "raw_equal": self.raw_equal, "bound": self.bound},
        }

    def __str__(self) -> str:
        lines = [
            f"{self.library} {self.kind} -> {self.engine}, {len(self.names)} features in {self.dtype}, "
            f"{len(self.content):,} bytes",
            f"  scores: {self.comparison}; allowed {self.bound:g}",
        ]
        if self.raw_equal is not None:
            lines.append(f"  before the link: {'equal in every bit' if self.raw_equal else 'not equal in every bit'}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def convert(
    model: Any,
    examples: Any,
    *,
    names: Sequence[str] | None = None,
    engine: str | None = None,
    dtype: Any = None,
    link: str = "identity",
    thresholds: Sequence[float] | None = None,
    max_difference: float = 1e-5,
    max_flip_share: float = 0.0,
    n_examples: int = 64,
) -> Converted:
    """Converts a model and compares it with itself on data.

    Args:
        model: `BoostedTrees`; a fitted model of LightGBM, XGBoost, CatBoost or scikit-learn (pipelines too); or a torch
            module that takes one matrix.
        examples: Rows as they will be served, best held out, some thousands: a matrix of shape (n, features), or, for
            pipelines that choose columns by name, a frame or a mapping from name to values.
        names: Features in order; by default the model's own.
        engine: `"forest"` or `"onnx"`; by default the forest where it can hold the model.
        dtype: Type of the rows in ONNX, float32 or float64; by default float32, and float64 where float32 is over a
            bound.
        link: What turns a torch module's output into a score: `"sigmoid"` for one logit, `"softmax"` for several.
        thresholds: Where decisions are made; by default 0.5 for probabilities and none for values.
        max_difference: Largest difference of a score that is allowed; relative to values above 1.
        max_flip_share: Largest share of decisions that may flip at a threshold.
        n_examples: How many rows go into the package with the scores expected for them.

    Raises:
        InvalidInput: If the model is of no known kind or not fitted, an engine cannot hold it, names are not those of
            its features or in another order, or there is no row.
        GateRefused: If the scores differ by more than is allowed; the message holds the report.
        MissingExtra: If the library or the exporter is not installed.

    Example:
        >>> from sklearn.ensemble import RandomForestClassifier
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(200, 2))
        >>> model = RandomForestClassifier(5, random_state=0).fit(X, X[:, 0] > 0)
        >>> converted = convert(model, X, names=["amount", "hour"])
        >>> converted.engine, converted.comparison.exact
        ('forest', True)
        >>> sorted(converted.files())
        ['conversion.json', 'examples.json', 'model.forest', 'signature.json']
    """
    if engine is not None and engine not in ENGINES:
        raise InvalidInput("engine", engine, f"be one of {', '.join(ENGINES)}, or None")
    if max_difference < 0 or max_flip_share < 0:
        raise InvalidInput("bounds", (max_difference, max_flip_share), "be at least 0")
    source = read_source(model, link=link)
    rows = _rows(model, examples)
    n = len(next(iter(rows.values()))) if isinstance(rows, dict) else len(rows)
    if n == 0:
        raise InvalidInput("examples", 0, "hold at least one row", "Give rows as they will be served")
    named = _names(source, rows, names)
    limits = tuple(thresholds if thresholds is not None else (0.5,) if source.probability else ())
    reference = source.score(examples)
    attempts: list[str] = []
    written = False
    for make in _makers(model, source, rows, engine=engine, dtype=dtype, link=link, allowed=max_difference):
        try:
            made = make()
        except InvalidInput as error:
            attempts.append(str(error))
            continue
        written = True
        comparison = compare(*_scaled(reference, made.score(made.rows), source), thresholds=limits)
        raw_equal = None
        if made.raw is not None and source.raw is not None:
            raw_equal = compare(source.raw(examples), made.raw(made.rows)).exact
        converted = Converted(
            library=source.library,
            kind=source.kind,
            engine=made.engine,
            content=made.content,
            names=named,
            dtype=made.dtype,
            probability=source.probability,
            comparison=comparison,
            raw_equal=raw_equal,
            bound=made.bound,
            notes=tuple(attempts),
            examples=_recorded(made, n_examples),
        )
        reasons = _reasons(converted, made, max_flip_share)
        if not reasons:
            return converted
        attempts.append(f"{made.engine} in {made.dtype}: {'; '.join(reasons)}")
    if not written:
        raise InvalidInput("model", source.kind, f"be one that can be converted: {' / '.join(attempts)}")
    tried = "\n  ".join(attempts)
    raise GateRefused(f"{source.library} {source.kind} is not the same when it is converted:\n  {tried}")


@dataclass(frozen=True, kw_only=True)
class _Made:
    engine: str
    content: bytes
    dtype: np.dtype[Any]
    rows: _Rows
    score: Callable[[Any], NDArray[np.float64]]
    raw: Callable[[Any], NDArray[np.float64]] | None
    bound: float


def _makers(
    model: Any, source: Source, rows: _Rows, *, engine: str | None, dtype: Any, link: str, allowed: float
) -> list[Callable[[], _Made]]:
    """Returns the forms to try, the best first."""
    makers: list[Callable[[], _Made]] = []
    if engine != "onnx" and source.library != "torch":
        makers.append(partial(_forest, model, rows, min(allowed, _LAST_PLACES)))
    # Only scikit-learn has models that are no trees.
    if engine == "onnx" or (engine is None and source.library in ("sklearn", "torch")):
        kinds = [dtype] if dtype is not None else [np.float32, np.float64]
        for kind in map(np.dtype, kinds):
            if kind not in (np.float32, np.float64):
                raise InvalidInput("dtype", str(kind), "be float32 or float64")
            makers.append(partial(_onnx, model, source, rows, kind, link, allowed))
    return makers


def _forest(model: Any, rows: _Rows, bound: float) -> _Made:
    if isinstance(rows, dict):
        raise InvalidInput("examples", sorted(rows), "be numbers for the forest", "Code texts as numbers")
    forest = Forest.of(model)
    matrix = np.ascontiguousarray(rows, dtype=np.float64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FOREST
        forest.save(path)
        content = path.read_bytes()
    return _Made(
        engine="forest",
        content=content,
        dtype=forest.input_dtype,
        rows=matrix,
        score=forest.predict,
        raw=forest.raw,
        bound=bound,
    )


def _onnx(model: Any, source: Source, rows: _Rows, dtype: np.dtype[Any], link: str, bound: float) -> _Made:
    content = export(model, source, rows, dtype=dtype, link=link)
    scorer = OnnxScorer(content)
    return _Made(
        engine="onnx",
        content=content,
        dtype=dtype,
        rows=scorer.feed(rows),
        score=scorer.score,
        raw=None,
        bound=bound,
    )


def _reasons(converted: Converted, made: _Made, max_flip_share: float) -> list[str]:
    comparison, reasons = converted.comparison, []
    if comparison.max_difference > made.bound:
        reasons.append(f"scores {comparison}; allowed {made.bound:g}")
    elif comparison.flip_share > max_flip_share:
        reasons.append(f"scores {comparison}; allowed {max_flip_share:.3%}")
    if converted.raw_equal is False:
        reasons.append("scores before the link are not equal in every bit")
    few = _some(made.rows, _ALONE)
    together = made.score(few)
    alone = np.concatenate([made.score(_some(few, i + 1, i)) for i in range(len(together))])
    apart = compare(together, alone).max_difference
    if apart > made.bound:
        reasons.append(f"rows score otherwise alone than together, by {apart:.3g}")
    return reasons


def _rows(model: Any, examples: Any) -> _Rows:
    columns = columns_of(examples)
    if columns is None:
        try:
            matrix = np.asarray(examples)
        except ValueError:
            raise InvalidInput("examples", type(examples), "be a matrix or a frame") from None
        if matrix.ndim != 2 or matrix.dtype.kind not in "biuf":
            raise InvalidInput("examples", matrix.shape, "be a matrix of numbers of shape (n, features), or a frame")
        return matrix if matrix.dtype.kind == "f" else matrix.astype(np.float64)
    by_name = any("ColumnTransformer" in type(step).__name__ for _, step in getattr(model, "steps", []))
    if not by_name and all(column.dtype.kind in "biuf" for column in columns.values()):
        return np.column_stack([column.astype(np.float64) for column in columns.values()])
    return {name: _column(name, column) for name, column in columns.items()}


def _column(name: str, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind == "f":
        return values.astype(np.float64).reshape(-1, 1)
    if values.dtype.kind in "biu":
        return values.astype(np.int64).reshape(-1, 1)
    if not all(isinstance(value, str) for value in values.tolist()):
        raise InvalidInput(f"examples[{name}]", values.dtype, "hold numbers or texts, none missing")
    return np.array(values.tolist(), dtype=object).reshape(-1, 1)


def _names(source: Source, rows: _Rows, names: Sequence[str] | None) -> tuple[str, ...]:
    known = source.names
    if isinstance(rows, dict):
        given = tuple(rows)
        if names is not None and tuple(names) != given:
            raise InvalidInput("names", list(names), f"be the columns of the examples, {list(given)}")
    else:
        given = tuple(names or known or (f"f{i}" for i in range(rows.shape[1])))
        if len(given) != rows.shape[1]:
            raise InvalidInput("names", len(given), f"name the {rows.shape[1]} columns of the examples")
    if len(set(given)) != len(given):
        raise InvalidInput("names", list(given), "name each feature once")
    if known and given != known and sorted(given) == sorted(known):
        raise InvalidInput("names", list(given), f"be in the order of the model, {list(known)}", "Reorder the columns")
    return given


def _scaled(
    reference: NDArray[np.float64], other: NDArray[np.float64], source: Source
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Divides values by what is larger, 1 or the value, so that one bound serves cents and millions."""
    if source.probability or reference.shape != other.shape:
        return reference, other
    scale = np.maximum(1.0, np.abs(np.where(np.isfinite(reference), reference, 1.0)))
    return reference / scale, other / scale


def _some(rows: _Rows, end: int, start: int = 0) -> Any:
    if isinstance(rows, dict):
        return {name: column[start:end] for name, column in rows.items()}
    return rows[start:end]


def _recorded(made: _Made, n_examples: int) -> dict[str, Any]:
    """Returns rows and scores for JSON, which has no infinities."""
    columns = made.rows if isinstance(made.rows, dict) else {INPUT: made.rows}
    finite = np.ones(len(next(iter(columns.values()))), dtype=bool)
    for column in columns.values():
        if column.dtype.kind == "f":
            finite &= ~np.isinf(column).any(axis=1)
    kept = np.flatnonzero(finite)[:n_examples]
    few = {name: column[kept] for name, column in columns.items()}
    if len(kept) == 0:
        return {"inputs": [], "outputs": []}
    scores = made.score(few if isinstance(made.rows, dict) else few[INPUT])
    shown = np.isfinite(scores.reshape(len(kept), -1)).all(axis=1)
    inputs = {name: _plain(column[shown]) for name, column in few.items()}
    outputs = scores[shown].tolist() if scores.ndim == 1 else scores[shown][:, -1].tolist()
    return {"inputs": inputs[INPUT] if list(inputs) == [INPUT] else inputs, "outputs": outputs}


def _plain(column: NDArray[Any]) -> list[Any]:
    if column.dtype.kind != "f":
        return json.loads(json.dumps(column.tolist()))
    return [[None if value != value else value for value in row] for row in column.tolist()]
