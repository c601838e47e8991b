"""Distillation: a small student that learns the scores of a large teacher, and what that loses and saves.

    found = distil(teacher, X_train, held_out=(X_late, y_late), names=names, batch_sizes={1: 1.0})
    print(found)
    found.chosen.converted.files()      # None where no student was good enough

A student learns the teacher's probabilities and not the labels (Hinton, Vinyals & Dean, Distilling the Knowledge in a
Neural Network, 2015): they say how sure the teacher is, and any row will do, with a label or without. It is converted
as it will be served before it is measured, and refused as a quantised form is: for log loss, calibration and flipped
decisions as much as for AUC, and where it saves no time.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitok import settings
from vitok.errors import GateRefused, InvalidInput, MissingExtra
from vitok.models.convert import Converted, convert
from vitok.models.forest import Forest
from vitok.models.onnx_scoring import OnnxScorer
from vitok.models.tradeoffs import (
    Bounds,
    Form,
    Quality,
    Run,
    Timing,
    check_batches,
    measure_form,
    measure_quality,
    time_in_turns,
)

TEACHER = "teacher"
_Floats = NDArray[np.float64]
_Score = Callable[[NDArray[Any]], _Floats]


class Student(Protocol):
    """A kind of small model."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def fit(self, X: NDArray[Any], probability: _Floats) -> Any:
        """Learns probabilities of shape (n,) and returns a model that `convert` takes."""
        ...


@dataclass(frozen=True, kw_only=True)
class TreeStudent:
    """Boosted trees, fewer or smaller than the teacher's.

    Attributes:
        trees: How many.
        leaves: Leaves of each, at least 2.
        learning_rate: Step of each.
    """

    trees: int = 50
    leaves: int = 15
    learning_rate: float = 0.15

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"{self.trees} trees of {self.leaves} leaves"

    def fit(self, X: NDArray[Any], probability: _Floats) -> Any:
        """Fits trees to probabilities by cross-entropy."""
        try:
            import lightgbm
        except ImportError:
            raise MissingExtra("models", "fitting boosted trees") from None
        parameters = {
            "objective": "cross_entropy",
            "num_leaves": self.leaves,
            "learning_rate": self.learning_rate,
            "seed": settings.current().seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": settings.current().threads,
            "verbosity": -1,
        }
        return lightgbm.train(parameters, lightgbm.Dataset(X, probability), self.trees)


@dataclass(frozen=True, kw_only=True)
class LogisticStudent:
    """A logistic regression on standardised features; missing values become the mean.

    Attributes:
        penalty: Strength of the ridge.
    """

    penalty: float = 1.0

    @property
    def name(self) -> str:
        """What reports call it."""
        return "logistic regression"

    def fit(self, X: NDArray[Any], probability: _Floats) -> Any:
        """Fits to each row as both classes, weighted by their probabilities."""
        from sklearn.linear_model import LogisticRegression

        last = LogisticRegression(C=1.0 / self.penalty, max_iter=1000)
        return _pipeline(X, probability, last, "logisticregression")


@dataclass(frozen=True, kw_only=True)
class NetworkStudent:
    """A small network on standardised features; missing values become the mean. Needs scikit-learn 1.7.

    Attributes:
        hidden: Widths of the hidden layers.
        epochs: Passes over the rows.
    """

    hidden: tuple[int, ...] = (32,)
    epochs: int = 30

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"network {'-'.join(map(str, self.hidden))}"

    def fit(self, X: NDArray[Any], probability: _Floats) -> Any:
        """Fits to each row as both classes, weighted by their probabilities."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        last = MLPClassifier(self.hidden, max_iter=self.epochs, random_state=settings.current().seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the number of passes is a choice
            return _pipeline(X, probability, last, "mlpclassifier")


def _pipeline(X: NDArray[Any], probability: _Floats, last: Any, step: str) -> Any:
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    both = np.concatenate([X, X])
    classes = np.repeat([1, 0], len(X))
    weights = {f"{step}__sample_weight": np.concatenate([probability, 1 - probability])}
    return make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler(), last).fit(both, classes, **weights)


STUDENTS: tuple[Student, ...] = (TreeStudent(), LogisticStudent(), NetworkStudent())


@dataclass(frozen=True, kw_only=True)
class Distilled(Form):
    """One student, measured against the teacher.

    Attributes:
        converted: It, as it is served; None where it cannot be converted.
    """

    converted: Converted | None = None

    def __str__(self) -> str:
        lines = [f"{self.name}: {'taken' if self.accepted else 'refused'}"]
        if self.quality is not None and self.loss is not None:
            lines.append(
                f"  AUC {self.quality.auc.value:.5f}, log loss {self.quality.log_loss.value:.5f} "
                f"({self.loss.log_loss:+.2%}), calibration error {self.quality.calibration.value:.4f}"
            )
            lines.append(f"  against the teacher: {self.loss.comparison}")
        lines += [f"  {timing}" for timing in self.timings]
        return "\n".join([*lines, *(f"  refused: {reason}" for reason in self.reasons)])


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What distilling found.

    Attributes:
        teacher: How good the teacher is.
        timings: The teacher's times.
        students: All students, in the order tried.
        bounds: What a student may lose and must save.
    """

    teacher: Quality
    timings: tuple[Timing, ...]
    students: tuple[Distilled, ...]
    bounds: Bounds

    @property
    def chosen(self) -> Distilled | None:
        """The accepted student that takes least time; None where there is none."""
        return min((item for item in self.students if item.accepted), key=lambda item: item.time_ratio, default=None)

    def __str__(self) -> str:
        chosen = self.chosen
        head = "chosen: the teacher" if chosen is None else f"chosen: {chosen.name}, {1 - chosen.time_ratio:.0%} saved"
        quality = f"teacher: AUC {self.teacher.auc.value:.5f}, log loss {self.teacher.log_loss.value:.5f}"
        times = [f"  {timing}" for timing in self.timings]
        return "\n".join([head, quality, *times, *map(str, self.students)])


def distil(
    teacher: Any,
    X: NDArray[Any],
    *,
    held_out: tuple[NDArray[Any], NDArray[Any]],
    batch_sizes: Mapping[int, float],
    names: Sequence[str] | None = None,
    students: Sequence[Student] = STUDENTS,
    thresholds: Sequence[float] = (0.5,),
    bounds: Bounds | None = None,
    rounds: int = 21,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Distillation:
    """Fits students to a teacher's scores and judges each on held-out rows.

    Args:
        teacher: A model that `convert` takes, or a function from rows to probabilities of shape (n,).
        X: Rows to learn from, shape (n, features); labels are not needed, so as many as there are.
        held_out: Rows and labels, shapes (n, features) and (n,), that neither teacher nor student learnt from.
        batch_sizes: Batch size to how many of the runs have it; the shares need not sum up to 1.
        names: Features in order.
        students: The kinds to try.
        thresholds: Where decisions are made.
        bounds: What a student may lose and must save.
        rounds: How often each is timed at each size.
        clock: Nanoseconds.

    Raises:
        InvalidInput: If rows and labels do not fit, there is no student, or the teacher gives no probabilities.
        GateRefused: If the teacher cannot be converted within the bounds of `convert`.
        MissingExtra: If a library is not installed.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(600, 3))
        >>> y = (X[:, 0] + rng.normal(size=600) > 0).astype(int)
        >>> found = distil(
        ...     lambda rows: 1 / (1 + np.exp(-1.7 * rows[:, 0])), X[:300], held_out=(X[300:], y[300:]),
        ...     batch_sizes={1: 1}, students=[LogisticStudent()], rounds=1,
        ... )
        >>> found.students[0].loss.log_loss < 0.01
        True
    """
    bounds = bounds or Bounds()
    shares = check_batches(batch_sizes)
    X, rows, y = np.asarray(X), np.asarray(held_out[0]), np.asarray(held_out[1])
    if X.ndim != 2 or rows.ndim != 2 or rows.shape[1] != X.shape[1] or len(rows) != len(y) or len(X) == 0:
        shapes = (X.shape, rows.shape, y.shape)
        raise InvalidInput("X and held_out", shapes, "have shapes (m, features), (n, features) and (n,), m at least 1")
    if not students:
        raise InvalidInput("students", (), "name at least one kind")
    score: _Score = teacher if _is_function(teacher) else _scorer(convert(teacher, rows, names=names))
    soft = np.asarray(score(X), dtype=np.float64)
    full = np.asarray(score(rows), dtype=np.float64)
    quality = measure_quality(y, full)
    if soft.shape != (len(X),) or not ((soft >= 0) & (soft <= 1)).all():
        raise InvalidInput("teacher", soft.shape, f"give probabilities of shape ({len(X)},)")
    made: dict[str, Converted] = {}
    failed: dict[str, str] = {}
    for student in students:
        try:
            made[student.name] = convert(student.fit(X, soft), rows, names=names, max_difference=1e-4)
        except (GateRefused, InvalidInput) as error:
            failed[student.name] = str(error)
    scores = {name: _scorer(item) for name, item in made.items()}
    forms = {TEACHER: _runs(score, rows), **{name: _runs(item, rows) for name, item in scores.items()}}
    timings = time_in_turns(forms, list(shares), rounds=rounds, clock=clock)
    found = {}
    for name, item in made.items():
        measured = measure_form(
            y,
            scores[name](rows),
            full,
            timings=(timings[name], timings[TEACHER]),
            shares=shares,
            thresholds=thresholds,
            bounds=bounds,
        )
        found[name] = Distilled(name=name, converted=item, **measured)
    refused = {name: Distilled(name=name, reasons=(text,)) for name, text in failed.items()}
    both = {**found, **refused}
    every = tuple(both[student.name] for student in students)
    return Distillation(teacher=quality, timings=timings[TEACHER], students=every, bounds=bounds)


def _is_function(teacher: Any) -> bool:
    return callable(teacher) and not hasattr(teacher, "forward") and not hasattr(teacher, "predict")


def _scorer(converted: Converted) -> _Score:
    if converted.engine == "onnx":
        return OnnxScorer(converted.content).score
    forest = _loaded(converted.content)
    kind = converted.dtype
    return lambda rows: forest.predict(np.ascontiguousarray(rows, dtype=kind))


def _loaded(content: bytes) -> Forest:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.forest"
        path.write_bytes(content)
        return Forest.load(path)


def _runs(score: _Score, rows: NDArray[Any]) -> Callable[[int], Run]:
    def prepared(size: int) -> Run:
        some = np.ascontiguousarray(np.resize(rows, (size, rows.shape[1])))
        return lambda: score(some)

    return prepared
