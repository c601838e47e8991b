"""Calibrators: from a model's score to a probability that means what it says.

All are non-decreasing, so they never reverse the model's order, and stay strictly inside (0, 1), so that no log loss
and no odds are infinite. Fit them on rows that the model was not trained on. Calling one does not validate: it is on
the request path, and a NaN score gives a NaN probability.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats import Estimate, isotonic_means
from vitok.stats.arrays import numbers
from vitok.stats.weighted_means import weighted_mean_interval, weights_of

_Floats = NDArray[np.float64]

_SMALLEST = 1e-12
# A sigmoid of 30 is 1 - 1e-13: further out, float64 would round to exactly 1.
_LARGEST_LOGIT = 30.0
_LEAST_TEMPERATURE = 1e-3


class Calibrator(Protocol):
    """What every calibrator can do; `calibrator_from_dict` reads what `to_dict` wrote."""

    kind: ClassVar[str]

    @classmethod
    def fit(cls, score: ArrayLike, y: ArrayLike, *, weight: ArrayLike | None = None) -> Self:
        """Fits to scores of shape (n,) and labels of shape (n,), bool or 0 and 1, weighted where weights are given."""
        ...

    def __call__(self, score: _Floats) -> _Floats:
        """Returns probabilities of shape (n,), strictly inside (0, 1)."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold, with the key `kind`."""
        ...


def read_labelled(score: ArrayLike, y: ArrayLike, weight: ArrayLike | None = None) -> tuple[_Floats, _Floats, _Floats]:
    """Reads scores, labels and weights of the rows that count, weights scaled to a mean of 1.

    Raises:
        InvalidInput: If the input is empty, not finite, of one class, or of different shapes, or a weight is negative.
    """
    try:
        scores, given = np.asarray(score, dtype=np.float64), np.asarray(y, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidInput("score and y", (score, y), "be arrays of numbers") from None
    if scores.ndim != 1 or scores.shape != given.shape:
        raise InvalidInput("score and y", (scores.shape, given.shape), "have the same shape (n,)")
    if len(scores) == 0:
        raise InvalidInput("score", [], "hold at least one row", "Calibrate on held-out rows with known labels")
    for field, array, bad, rule in (
        ("score", scores, ~np.isfinite(scores), "be finite everywhere"),
        ("y", given, (given != 0) & (given != 1), "be 0 or 1"),
    ):
        if bad.any():
            at = int(np.argmax(bad))
            raise InvalidInput(f"{field}[{at}]", float(array[at]), rule, "Leave such rows out of the calibration set")
    weights = weights_of("weight", weight, len(scores))
    counted = weights > 0
    if not counted.all():
        scores, given, weights = scores[counted], given[counted], weights[counted]
    if given.min() == given.max():
        raise InvalidInput(
            "y", f"{len(given)} times {given[0]:g}", "hold both classes", "Take a longer held-out period"
        )
    return scores, given, weights / weights.mean()


def _is_unit(scores: _Floats) -> bool:
    return bool(scores.min() >= 0.0 and scores.max() <= 1.0)


def _unit(scores: _Floats) -> _Floats:
    if not _is_unit(scores):
        outside = float(scores.min() if scores.min() < 0 else scores.max())
        raise InvalidInput(
            "score", outside, "be in [0, 1] for beta calibration", "Use Platt or isotonic for raw scores"
        )
    return scores


def _inside(score: ArrayLike) -> _Floats:
    return np.minimum(np.maximum(_double(score), _SMALLEST), 1 - _SMALLEST)


def _double(score: ArrayLike) -> _Floats:
    # Many engines answer in float32, in which 1 - 1e-12 is 1, and a sigmoid of 30 as well.
    return numbers("score", score)


def _logit(score: ArrayLike) -> _Floats:
    inside = _inside(score)
    return np.log(inside / (1 - inside))


def _sigmoid(logit: _Floats) -> _Floats:
    return 1 / (1 + np.exp(-np.minimum(np.maximum(logit, -_LARGEST_LOGIT), _LARGEST_LOGIT)))


def _softened(y: _Floats, weight: _Floats) -> _Floats:
    # Platt's targets: the mean of each class under a uniform prior. Without them separable data have no finite fit.
    n_positive = float(weight @ y)
    return np.where(y == 1, (n_positive + 1) / (n_positive + 2), 1 / (float(weight.sum()) - n_positive + 2))


def _logistic(columns: Sequence[_Floats], targets: _Floats, weight: _Floats) -> list[float]:
    """Fits a logistic regression with an intercept by Newton's method with halved steps.

    Returns:
        One coefficient for each column, each at least 0, then the intercept. A column whose coefficient would be
        negative is left out, as if it had not been given.
    """
    kept = list(range(len(columns)))
    while True:
        raw = np.array([columns[k] for k in kept]).reshape(len(kept), len(targets))
        centre, spread = raw.mean(axis=1), raw.std(axis=1)
        spread = np.where(spread > 0, spread, 1.0)
        design = np.vstack(((raw - centre[:, None]) / spread[:, None], np.ones(len(targets))))
        weights = _newton(design, targets, weight)
        slopes = weights[:-1] / spread
        if (slopes >= 0).all():
            coefficients = [0.0] * len(columns)
            for k, slope in zip(kept, slopes.tolist(), strict=True):
                coefficients[k] = slope
            return [*coefficients, float(weights[-1] - slopes @ centre)]
        del kept[int(np.argmin(slopes))]


def _newton(design: _Floats, targets: _Floats, weight: _Floats) -> _Floats:
    weights = np.zeros(len(design))
    share = weight / weight.sum()
    rate = float(share @ targets)
    weights[-1] = math.log(rate / (1 - rate))

    def loss(w: _Floats) -> float:
        z = w @ design
        return float(share @ (np.logaddexp(0.0, z) - targets * z))

    current = loss(weights)
    for _ in range(100):
        p = _sigmoid(weights @ design)
        gradient = design @ (share * (p - targets))
        # A hair of ridge in the step alone keeps a constant column solvable and does not move the solution.
        hessian = (design * (share * p * (1 - p))) @ design.T + 1e-12 * np.eye(len(design))
        step = np.linalg.solve(hessian, gradient)
        for _ in range(30):
            moved = weights - step
            found = loss(moved)
            if found <= current:
                break
            step = step / 2
        else:
            return weights
        done = current - found <= 1e-14 * abs(current) and float(np.abs(step).max()) < 1e-8
        weights, current = moved, found
        if done:
            return weights
    return weights


@dataclass(frozen=True, kw_only=True)
class PlattCalibrator:
    """A logistic curve: two numbers, hard to overfit, right where score and log odds are on a line.

    Attributes:
        slope: At least 0; 0 where the score does not rise with the label.
        intercept: Log odds at a (transformed) score of 0.
        on_logit: True where the score is a probability and its log odds are taken first, kept 1e-12 from 0 and 1.

    Source: Platt 1999, with his softened targets; Lin, Lin & Weng, Machine Learning 2007.

    Example:
        >>> calibrator = PlattCalibrator.fit([-2.0, -1.0, 1.0, 2.0], [0, 0, 1, 1])
        >>> calibrator(np.array([0.0, 2.0])).round(3).tolist()
        [0.5, 0.794]
    """

    kind: ClassVar[str] = "platt"

    slope: float
    intercept: float
    on_logit: bool

    @classmethod
    def fit(cls, score: ArrayLike, y: ArrayLike, *, weight: ArrayLike | None = None) -> Self:
        """Fits slope and intercept; where all scores lie in [0, 1] they are taken as probabilities.

        Args:
            score: Finite scores of shape (n,).
            y: Labels of shape (n,), bool or 0 and 1, both present.
            weight: What each row stands for, shape (n,), at least 0, such as one over its propensity; None takes
                all alike.

        Raises:
            InvalidInput: If the input is empty, not finite, of one class, or of different shapes.
        """
        scores, labels, weights = read_labelled(score, y, weight)
        on_logit = _is_unit(scores)
        columns = [_logit(scores) if on_logit else scores]
        slope, intercept = _logistic(columns, _softened(labels, weights), weights)
        return cls(slope=slope, intercept=intercept, on_logit=on_logit)

    def __call__(self, score: _Floats) -> _Floats:
        """Returns probabilities of shape (n,), strictly inside (0, 1)."""
        return _sigmoid(self.slope * (_logit(score) if self.on_logit else _double(score)) + self.intercept)

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {"kind": self.kind, "slope": self.slope, "intercept": self.intercept, "on_logit": self.on_logit}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a part is missing, not finite, or out of its range.
        """
        return cls(
            slope=_number(data, "slope", at_least=0.0),
            intercept=_number(data, "intercept"),
            on_logit=bool(_part(data, "on_logit")),
        )


@dataclass(frozen=True, kw_only=True)
class BetaCalibrator:
    """A logistic curve in ln s and -ln(1 - s): bends at both ends apart, and contains the identity.

    Scores are kept 1e-12 from 0 and 1.

    Attributes:
        a: Coefficient of ln s, at least 0.
        b: Coefficient of -ln(1 - s), at least 0.
        c: Intercept.

    Source: Kull, Silva Filho & Flach, Beta calibration, AISTATS 2017; Platt's softened targets are added.

    Example:
        >>> identity = BetaCalibrator(a=1.0, b=1.0, c=0.0)
        >>> identity(np.array([0.1, 0.7])).round(6).tolist()
        [0.1, 0.7]
    """

    kind: ClassVar[str] = "beta"

    a: float
    b: float
    c: float

    @classmethod
    def fit(cls, score: ArrayLike, y: ArrayLike, *, weight: ArrayLike | None = None) -> Self:
        """Fits the three parameters.

        Args:
            score: Scores in [0, 1] of shape (n,).
            y: Labels of shape (n,), bool or 0 and 1, both present.
            weight: What each row stands for, shape (n,), at least 0, such as one over its propensity; None takes
                all alike.

        Raises:
            InvalidInput: If the input is empty, outside [0, 1], of one class, or of different shapes.
        """
        scores, labels, weights = read_labelled(score, y, weight)
        inside = _inside(_unit(scores))
        a, b, c = _logistic([np.log(inside), -np.log1p(-inside)], _softened(labels, weights), weights)
        return cls(a=a, b=b, c=c)

    def __call__(self, score: _Floats) -> _Floats:
        """Returns probabilities of shape (n,), strictly inside (0, 1)."""
        inside = _inside(score)
        return _sigmoid(self.a * np.log(inside) - self.b * np.log1p(-inside) + self.c)

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {"kind": self.kind, "a": self.a, "b": self.b, "c": self.c}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a part is missing, not finite, or out of its range.
        """
        return cls(a=_number(data, "a", at_least=0.0), b=_number(data, "b", at_least=0.0), c=_number(data, "c"))


@dataclass(frozen=True, kw_only=True)
class IsotonicCalibrator:
    """A free non-decreasing curve, linear between knots: for many rows and any bend.

    One pseudo-row with the base rate as its target stands at each end of the scores. It keeps the ends strictly
    inside (0, 1), by the more the fewer rows there are, and does not move the base rate.

    Attributes:
        scores: Ascending knots.
        probabilities: Non-decreasing values at the knots, strictly inside (0, 1); constant beyond the ends.

    Source: Zadrozny & Elkan, KDD 2002.

    Example:
        >>> calibrator = IsotonicCalibrator.fit([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1])
        >>> calibrator(np.array([0.0, 0.2, 0.9])).round(3).tolist()
        [0.25, 0.5, 0.75]
    """

    kind: ClassVar[str] = "isotonic"

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    @classmethod
    def fit(cls, score: ArrayLike, y: ArrayLike, *, weight: ArrayLike | None = None) -> Self:
        """Fits the knots.

        Args:
            score: Finite scores of shape (n,).
            y: Labels of shape (n,), bool or 0 and 1, both present.
            weight: What each row stands for, shape (n,), at least 0, such as one over its propensity; None takes
                all alike.

        Raises:
            InvalidInput: If the input is empty, not finite, of one class, or of different shapes.
        """
        scores, labels, weights = read_labelled(score, y, weight)
        rate = float(weights @ labels / weights.sum())
        x, values, _ = isotonic_means(
            np.concatenate((scores, [scores.min(), scores.max()])),
            np.concatenate((labels, [rate, rate])),
            np.concatenate((weights, [1.0, 1.0])),
        )
        # Pooled means of equal blocks may differ in the last bit; the inner points of a flat piece add nothing.
        values = np.maximum.accumulate(values)
        changed = np.diff(values) > 1e-12
        kept = np.concatenate(([True], changed)) | np.concatenate((changed, [True]))
        return cls(scores=tuple(x[kept].tolist()), probabilities=tuple(values[kept].tolist()))

    @cached_property
    def _knots(self) -> tuple[_Floats, _Floats]:
        return np.array(self.scores, dtype=np.float64), np.array(self.probabilities, dtype=np.float64)

    def __call__(self, score: _Floats) -> _Floats:
        """Returns probabilities of shape (n,), strictly inside (0, 1)."""
        return np.interp(numbers("score", score), *self._knots)

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {"kind": self.kind, "scores": list(self.scores), "probabilities": list(self.probabilities)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If knots are missing, do not ascend, or lie outside (0, 1).
        """
        x = np.array(_part(data, "scores"), dtype=np.float64)
        values = np.array(_part(data, "probabilities"), dtype=np.float64)
        if x.shape != values.shape or x.ndim != 1 or len(x) == 0:
            raise InvalidInput("scores and probabilities", (x.shape, values.shape), "have the same shape (n,), n > 0")
        if not (np.diff(x) > 0).all():
            raise InvalidInput("scores", x.tolist(), "ascend strictly")
        if not ((np.diff(values) >= 0).all() and values[0] > 0 and values[-1] < 1):
            raise InvalidInput("probabilities", values.tolist(), "not descend and lie strictly between 0 and 1")
        return cls(scores=tuple(x.tolist()), probabilities=tuple(values.tolist()))


@dataclass(frozen=True, kw_only=True)
class TemperatureCalibrator:
    """One number that makes probabilities bolder or more timid and leaves 0.5 where it is.

    Attributes:
        temperature: Above 0; above 1 where the model was too sure of itself. The log odds are divided by it.

    Source: Guo, Pleiss, Sun & Weinberger, ICML 2017.

    Example:
        >>> TemperatureCalibrator(temperature=2.0)(np.array([0.5, 0.9])).round(3).tolist()
        [0.5, 0.75]
    """

    kind: ClassVar[str] = "temperature"

    temperature: float

    @classmethod
    def fit(cls, score: ArrayLike, y: ArrayLike, *, weight: ArrayLike | None = None) -> Self:
        """Fits the temperature to probabilities.

        Args:
            score: Scores in [0, 1] of shape (n,).
            y: Labels of shape (n,), bool or 0 and 1, both present.
            weight: What each row stands for, shape (n,), at least 0; None takes all alike.

        Raises:
            InvalidInput: If the input is empty, outside [0, 1], of one class, or of different shapes.
        """
        from scipy.optimize import minimize_scalar

        scores, labels, weights = read_labelled(score, y, weight)
        z = _logit(_unit(scores))
        if not z.any():
            # Any temperature fits scores that are all one half: the search would end far out.
            return cls(temperature=1.0)

        def loss(log_temperature: float) -> float:
            scaled = z * math.exp(-log_temperature)
            return float(weights @ (np.logaddexp(0.0, scaled) - labels * scaled))

        found = minimize_scalar(loss, bounds=(-6.0, 6.0), method="bounded", options={"xatol": 1e-9})
        return cls(temperature=math.exp(float(found.x)))

    def __call__(self, score: _Floats) -> _Floats:
        """Returns probabilities of shape (n,), strictly inside (0, 1)."""
        return _sigmoid(_logit(score) / self.temperature)

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {"kind": self.kind, "temperature": self.temperature}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a part is missing, not finite, or out of its range.
        """
        return cls(temperature=_number(data, "temperature", at_least=_LEAST_TEMPERATURE))


# What fit_best tries where nothing is named; temperature and Venn-Abers are there for who asks for them.
CALIBRATORS: tuple[type[PlattCalibrator] | type[BetaCalibrator] | type[IsotonicCalibrator], ...] = (
    PlattCalibrator,
    BetaCalibrator,
    IsotonicCalibrator,
)


def _part(data: Mapping[str, Any], field: str) -> Any:
    if field not in data:
        raise InvalidInput(field, None, "be there", "Pass what to_dict returned")
    return data[field]


def _number(data: Mapping[str, Any], field: str, *, at_least: float = -math.inf) -> float:
    given = _part(data, field)
    if not isinstance(given, (int, float)) or not (math.isfinite(given) and given >= at_least):
        rule = "be a finite number" + (f" of at least {at_least:g}" if math.isfinite(at_least) else "")
        raise InvalidInput(field, given, rule, "Pass what to_dict returned")
    return float(given)


def calibrator_from_dict(data: Mapping[str, Any]) -> Calibrator:
    """Reads a calibrator of any kind from what its `to_dict` wrote.

    Raises:
        InvalidInput: If the kind is unknown or a part is missing.

    Example:
        >>> calibrator_from_dict({"kind": "beta", "a": 1.0, "b": 1.0, "c": 0.0})
        BetaCalibrator(a=1.0, b=1.0, c=0.0)
    """
    # They lean on this module, and their compiled part is loaded only where it is wanted.
    from vitok.models.calibrators_venn_abers import CrossVennAbersCalibrator, VennAbersCalibrator

    kind = _part(data, "kind")
    known = (*CALIBRATORS, TemperatureCalibrator, VennAbersCalibrator, CrossVennAbersCalibrator)
    for calibrator in known:
        if calibrator.kind == kind:
            return calibrator.from_dict(data)
    raise InvalidInput("kind", kind, "be one of " + ", ".join(calibrator.kind for calibrator in known))


@dataclass(frozen=True, kw_only=True)
class CalibratorChoice:
    """The calibrator that predicted best on rows it was not fitted to, fitted to all of them.

    Attributes:
        calibrator: The winner.
        kind: Its kind.
        log_losses: Kind and cross-validated log loss in nats of each candidate, in the order tried.
        uncalibrated: Log loss of the scores as they are, None where they are no probabilities.
        n_folds: Folds of the cross-validation.
    """

    calibrator: Calibrator
    kind: str
    log_losses: tuple[tuple[str, Estimate], ...]
    uncalibrated: Estimate | None
    n_folds: int

    def __str__(self) -> str:
        shown = ", ".join(f"{kind} {loss.value:.5g}" for kind, loss in self.log_losses)
        before = f", as given {self.uncalibrated.value:.5g}" if self.uncalibrated else ""
        return f"{self.kind} (log loss in {self.n_folds} folds: {shown}{before})"


def weighted_log_loss(probability: _Floats, y: _Floats, weight: _Floats) -> Estimate:
    """Returns the weighted mean log loss in nats; a probability of what happened counts as at least 1e-15."""
    losses = -np.log(np.maximum(np.where(y == 1, probability, 1 - probability), 1e-15))
    return weighted_mean_interval(losses, weight, name="log_loss")


def _folds(labels: _Floats, n_folds: int, seed: int) -> NDArray[np.intp]:
    fold = np.empty(len(labels), dtype=np.intp)
    generator = np.random.default_rng(seed)
    for value in (0.0, 1.0):
        rows = np.flatnonzero(labels == value)
        fold[generator.permutation(rows)] = np.arange(len(rows)) % n_folds
    return fold


def fit_best(
    score: ArrayLike,
    y: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    kinds: Sequence[type[Calibrator]] | None = None,
    n_folds: int = 5,
    seed: int = 0,
) -> CalibratorChoice:
    """Chooses a calibrator by cross-validated log loss and fits it to all rows.

    Args:
        score: Finite scores of shape (n,), of rows that the model was not trained on.
        y: Labels of shape (n,), bool or 0 and 1, at least two of each.
        weight: What each row stands for, shape (n,), at least 0; None takes all alike.
        kinds: Calibrator classes to try; the first wins a tie. None tries Platt, beta (where scores are in [0, 1])
            and isotonic.
        n_folds: Folds, at least 2, drawn within each class; fewer where a class has fewer rows.
        seed: Seed of the draw.

    Returns:
        The choice with what it rests on.

    Raises:
        InvalidInput: If the input is empty, not finite, of different shapes, or has fewer than two rows of a class.

    Example:
        >>> rng = np.random.default_rng(1)
        >>> p = rng.uniform(0.01, 0.99, 2000)
        >>> choice = fit_best(p**2, rng.uniform(size=2000) < p)
        >>> choice.log_losses[0][0], choice.n_folds
        ('platt', 5)
    """
    scores, labels, weights = read_labelled(score, y, weight)
    smallest = int(min(labels.sum(), len(labels) - labels.sum()))
    if n_folds < 2:
        raise InvalidInput("n_folds", n_folds, "be at least 2")
    if smallest < 2:
        raise InvalidInput(
            "y", f"{smallest} row of one class", "hold at least two of each", "Fit one kind by its own fit"
        )
    candidates: list[type[Calibrator]] = list(CALIBRATORS if kinds is None else kinds)
    if kinds is None and not _is_unit(scores):
        candidates.remove(BetaCalibrator)
    if not candidates:
        raise InvalidInput("kinds", (), "name at least one calibrator")
    used = min(n_folds, smallest)
    fold = _folds(labels, used, seed)
    losses = []
    for candidate in candidates:
        held_out = np.empty(len(scores))
        for k in range(used):
            rest = fold != k
            held_out[~rest] = candidate.fit(scores[rest], labels[rest], weight=weights[rest])(scores[~rest])
        losses.append((candidate.kind, weighted_log_loss(held_out, labels, weights)))
    best = min(range(len(losses)), key=lambda k: losses[k][1].value)
    return CalibratorChoice(
        calibrator=candidates[best].fit(scores, labels, weight=weights),
        kind=candidates[best].kind,
        log_losses=tuple(losses),
        uncalibrated=weighted_log_loss(scores, labels, weights) if _is_unit(scores) else None,
        n_folds=used,
    )
