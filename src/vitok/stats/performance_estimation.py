"""What a classifier's metrics will be before the labels are in, from calibrated probabilities.

Each row counts as a positive with its calibrated probability, so every metric has an expectation, and a spread that
the labels alone will cause. Nothing here can see that the probability of a class given the features has changed: an
estimate stands beside what matured labels later say, and is graded by it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput, NotFound
from vitok.stats.arrays import Flags, Floats, labels, labels_and_scores, positive_integer, same_length, vector
from vitok.stats.intervals import normal_quantile
from vitok.stats.results import Estimate, Result
from vitok.stats.weighted_means import weights_of

_LOG_FLOOR = 1e-15
_DOES_NOT_SEE = "cannot see a change of P(y | x)"


@dataclass(frozen=True, kw_only=True)
class ExpectedMetric(Estimate):
    """A metric before its labels are in; the interval is for the value that the labels of these very rows will show.

    Attributes:
        label_error: Standard deviation that the labels alone cause, given the probabilities: falls with the rows.
        calibration_error: Standard error from the rows on which the probabilities were calibrated; 0 if not given.
        resolution: How far the value may at most lie from that of the single rows because only counts in bins were
            kept; 0 from rows. Not part of the interval.
    """

    label_error: float
    calibration_error: float
    resolution: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ExpectedPerformance(Result):
    """Metrics before their labels are in.

    Attributes:
        estimates: The metrics, each with its interval; NaN where the rows cannot say.
        n_obs: Rows.
        expected_positives: Sum of the calibrated probabilities.

    Example:
        >>> found = expected_performance([0.1, 0.4, 0.9], [0.1, 0.4, 0.9])
        >>> found.expected_positives, round(found["brier"].value, 4)
        (1.4, 0.14)
    """

    estimates: tuple[ExpectedMetric, ...]
    n_obs: int
    expected_positives: float

    def __getitem__(self, name: str) -> ExpectedMetric:
        """Returns one metric.

        Raises:
            NotFound: If it was not estimated.
        """
        for estimate in self.estimates:
            if estimate.name == name:
                return estimate
        raise NotFound("metric", name, (estimate.name for estimate in self.estimates))

    def __str__(self) -> str:
        head = f"{self.n_obs:,} rows without labels, {self.expected_positives:,.1f} positives expected"
        return "\n".join([head, *(f"  {estimate}" for estimate in self.estimates)])


@dataclass(frozen=True, kw_only=True)
class CalibrationNoise(Result):
    """How well labelled rows pin down the calibration curve, piece by piece.

    Attributes:
        edges: Ascending scores that separate k + 1 pieces; a piece is [edge, next edge).
        variance: Variance of the frequency of positives in each piece.
        n_obs: Labelled rows.
    """

    edges: tuple[float, ...]
    variance: tuple[float, ...]
    n_obs: int

    def variance_of(self, score: Floats, gradient: Floats) -> float:
        """Returns the variance of a sum of probabilities weighted by `gradient`, both of shape (n,)."""
        piece = np.searchsorted(np.array(self.edges), score, side="right")
        moved = np.bincount(piece, weights=gradient, minlength=len(self.variance))
        return float(moved**2 @ np.array(self.variance))


def calibration_noise(
    score: ArrayLike, y: ArrayLike, *, weight: ArrayLike | None = None, n_pieces: int = 20
) -> CalibrationNoise:
    """Measures how well labelled rows pin down a calibration curve.

    Args:
        score: Scores of the rows that the calibrator was fitted to, shape (n,), n at least 1.
        y: Labels of shape (n,), bool or 0 and 1.
        weight: Weights of shape (n,) that the calibrator was fitted with, at least 0; None takes all alike.
        n_pieces: Pieces of about equal mass that are taken to err independently; equal scores share a piece.

    Returns:
        The noise; a frequency of 0 or 1 is pulled inside by one row of each class.

    Raises:
        InvalidInput: If there are no rows, shapes differ, a score is NaN, or a label is not 0 or 1.

    Example:
        >>> calibration_noise([0.1, 0.2, 0.8, 0.9], [0, 1, 1, 1], n_pieces=2).edges
        (0.8,)
    """
    flags, scores = labels_and_scores(y, score)
    positive_integer("n_pieces", n_pieces)
    n = len(scores)
    if n == 0:
        raise InvalidInput("score", [], "hold at least one row", "Calibrate on held-out rows with known labels")
    edges = np.unique(np.sort(scores)[(n * np.arange(1, n_pieces)) // n_pieces])
    edges = edges[edges > scores.min()]
    piece = np.searchsorted(edges, scores, side="right")
    w = weights_of("weight", weight, n)
    k = len(edges) + 1
    mass, squares, positive = (np.bincount(piece, weights=each, minlength=k) for each in (w, w**2, w * flags))
    # Kish's effective number of rows in each piece; a piece without any says nothing.
    count = np.divide(mass**2, squares, out=np.zeros_like(mass), where=squares > 0)
    frequency = np.divide(positive, mass, out=np.full_like(mass, 0.5), where=mass > 0)
    rate = (frequency * count + 1) / (count + 2)
    variance = rate * (1 - rate) / np.maximum(count, 1)
    return CalibrationNoise(edges=tuple(edges.tolist()), variance=tuple(variance.tolist()), n_obs=n)


@dataclass(frozen=True)
class ExpectedRanking:
    """Rows in groups of equal score, groups in descending order.

    Attributes:
        group: Group of each row.
        n: Rows of each group.
        positive: Expected positives of each group.
        noise: Variance of the positives of each group.
        squares: Sum of the squares of its rows' variances; None takes the rows of a group as alike.
    """

    group: NDArray[np.intp]
    n: Floats
    positive: Floats
    noise: Floats
    squares: Floats | None = None

    @classmethod
    def of(cls, score: Floats, probability: Floats) -> "ExpectedRanking":
        """Groups rows of shape (n,) by their score."""
        _, ascending = np.unique(score, return_inverse=True)
        group = ascending.max() - ascending if len(ascending) else ascending
        return cls(
            group.astype(np.intp, copy=False),
            np.bincount(group).astype(np.float64),
            np.bincount(group, weights=probability).astype(np.float64),
            np.bincount(group, weights=probability * (1 - probability)).astype(np.float64),
            np.bincount(group, weights=(probability * (1 - probability)) ** 2).astype(np.float64),
        )

    def roc_auc(self) -> tuple[float, Floats]:
        """Returns the expected area under the ROC curve and its gradient by each row's label."""
        t = self.positive
        f = self.n - t
        positives, negatives = float(t.sum()), float(f.sum())
        # A row is never compared with itself: its share of the pairs is taken out of numerator and denominator.
        diagonal = float(self.noise.sum())
        pairs = positives * negatives - diagonal
        if not pairs > 1e-12 * positives * negatives or positives == 0 or negatives == 0:
            return math.nan, np.zeros(len(self.group))
        below = negatives - np.cumsum(f) + f / 2
        above = np.cumsum(t) - t / 2
        value = (float(t @ below) - diagonal / 2) / pairs
        itself = (1 - 2 * t / np.maximum(self.n, 1e-300)) * (value - 0.5)
        slope = (below - above - value * (negatives - positives) + itself) / pairs
        return min(max(value, 0.0), 1.0), slope[self.group]

    def average_precision(self) -> tuple[float, Floats]:
        """Returns the expected average precision and its gradient by each row's label."""
        t = self.positive
        positives = float(t.sum())
        if not positives > 0:
            return math.nan, np.zeros(len(self.group))
        above, true_above = np.cumsum(self.n), np.cumsum(t)
        precision = true_above / above
        # A positive counts itself among those at its score: E[T C] = E[T] E[C] + Var(T).
        value = float((t @ precision + (self.noise / above).sum()) / positives)
        gain = np.cumsum((t / above)[::-1])[::-1]
        # A row's product with itself is its label, and moves by 1 where the sums above have it move by 2 p.
        itself = (1 - 2 * t / np.maximum(self.n, 1e-300)) / above
        slope = (precision + gain + itself - value) / positives
        return min(value, 1.0), slope[self.group]

    def average_precision_of_pairs(self) -> float:
        """Returns the variance of average precision that no gradient shows: that of the products of two labels.

        The labels at the first few scores count for much, and count together. Where positives are rare this is as
        much as all the rest.
        """
        positives = float(self.positive.sum())
        if not positives > 0:
            return 0.0
        # Of a sum of products a_ij y_i y_j of independent labels: a_ij^2 times both variances, over all pairs.
        above, before = np.cumsum(self.n), np.cumsum(self.noise) - self.noise
        alone = self.noise**2 / self.n if self.squares is None else self.squares
        within = np.maximum(self.noise**2 - alone, 0.0)
        return float(((self.noise * before + 2 * within) / above**2).sum()) / positives**2


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom > 0 else math.nan


BY_FLAG = (
    "accuracy",
    "precision",
    "recall",
    "specificity",
    "f1",
    "true_positive_share",
    "false_positive_share",
    "false_negative_share",
    "true_negative_share",
)
"""What `expected_by_flag` returns."""


def expected_by_flag(flagged: Flags, p: Floats, copies: Floats | None = None) -> dict[str, tuple[float, Floats]]:
    """Returns value and gradient by a row's label of every metric that rests on a yes and no.

    Args:
        flagged: Which rows are taken for positives.
        p: Their probabilities.
        copies: How many rows each stands for; None for one.
    """
    m = np.ones(len(p)) if copies is None else copies
    n = float(m.sum())
    yes = flagged.astype(np.float64)
    no = 1 - yes
    tp, fp = float((m * yes) @ p), float((m * yes) @ (1 - p))
    fn, tn = float((m * no) @ p), float((m * no) @ (1 - p))
    positives, negatives, flags = tp + fn, fp + tn, tp + fp
    precision, recall, specificity = _ratio(tp, flags), _ratio(tp, positives), _ratio(tn, negatives)
    f1 = _ratio(2 * tp, flags + positives)
    return {
        "accuracy": ((tp + tn) / n, (yes - no) / n),
        "precision": (precision, yes / max(flags, 1e-300)),
        "recall": (recall, (yes - recall) / max(positives, 1e-300)),
        "specificity": (specificity, (specificity - no) / max(negatives, 1e-300)),
        "f1": (f1, (2 * yes - f1) / max(flags + positives, 1e-300)),
        "true_positive_share": (tp / n, yes / n),
        "false_positive_share": (fp / n, -yes / n),
        "false_negative_share": (fn / n, no / n),
        "true_negative_share": (tn / n, -no / n),
    }


DEFINITIONS: Mapping[str, str] = {
    "positive_rate": "mean calibrated probability",
    "roc_auc": "expected pairs in order over expected pairs, ties one half",
    "average_precision": "expected mean over positives of the precision at their score, no interpolation",
    "accuracy": "expected share of right flags",
    "precision": "expected share of positives among the flagged",
    "recall": "expected flagged positives over expected positives",
    "specificity": "expected unflagged negatives over expected negatives",
    "f1": "twice the expected flagged positives over flagged and expected positives",
    "true_positive_share": "expected flagged positives over rows",
    "false_positive_share": "expected flagged negatives over rows",
    "false_negative_share": "expected unflagged positives over rows",
    "true_negative_share": "expected unflagged negatives over rows",
    "brier": "expected mean of (forecast - y) squared",
    "log_loss": "expected mean of -ln of the forecast of what happens, in nats",
    "cost": "expected mean cost of a row, in the unit of the costs",
}
_UNBOUNDED = {"log_loss": (0.0, math.inf), "cost": (-math.inf, math.inf)}


def bounded_interval(value: float, error: float, z: float, low: float, high: float) -> tuple[float, float]:
    """Returns a normal interval on the logit scale where the range is [0, 1] and the value inside, else a plain one."""
    if math.isnan(value):
        return low, high
    if (low, high) == (0.0, 1.0) and 1e-12 < value < 1 - 1e-12 and error > 0:
        centre, half = math.log(value / (1 - value)), z * error / (value * (1 - value))
        return 1 / (1 + math.exp(min(700.0, half - centre))), 1 / (1 + math.exp(max(-700.0, -half - centre)))
    return max(low, value - z * error), min(high, value + z * error)


_FEW_EVENTS = 10.0


def _interval_of_few(near: float, error: float, confidence_level: float) -> tuple[float, float]:
    """Returns where a small share will lie that comes of a few events: by their Poisson law, 0 events among them.

    Args:
        near: What is expected of the share, above 0.
        error: Its standard deviation.
        confidence_level: Level, in (0, 1).
    """
    # So many events of such a size have this mean and this deviation.
    size = error**2 / near
    events = near / size
    tail = (1 - confidence_level) / 2
    chance = total = math.exp(-events)
    k, first = 0, -1
    while True:
        if first < 0 and total >= tail:
            first = k
        if total >= 1 - tail:
            break
        k += 1
        chance *= events / k
        total += chance
    return max(0.0, first - 0.5) * size, (k + 0.5) * size


def _realised_interval(
    value: float, error: float, confidence_level: float, low: float, high: float
) -> tuple[float, float]:
    """Returns where the value will lie that the labels show; unlike that of `bounded_interval` it may be 0 or 1."""
    near = min(value, 1 - value)
    if (low, high) == (0.0, 1.0) and error > 0 and 1e-12 < near < math.sqrt(_FEW_EVENTS) * error:
        least, most = _interval_of_few(near, error, confidence_level)
        return (least, min(1.0, most)) if value < 0.5 else (max(0.0, 1 - most), 1 - least)
    return bounded_interval(value, error, normal_quantile(confidence_level), low, high)


def expected_metric(
    name: str,
    value: float,
    variance: tuple[float, float],
    n: int,
    confidence_level: float,
    definition: str,
    undefined: str,
    resolution: float = 0.0,
) -> ExpectedMetric:
    """Puts a metric together from its value and the variances from labels and from calibration."""
    nothing = math.isnan(value)
    low, high = _UNBOUNDED.get(name, (0.0, 1.0))
    label, calibration = (0.0, 0.0) if nothing else (math.sqrt(variance[0]), math.sqrt(variance[1]))
    lower, upper = _realised_interval(value, math.hypot(label, calibration), confidence_level, low, high)
    how = "interval from label noise" + (" and calibration noise" if calibration else "")
    return ExpectedMetric(
        name=name,
        value=value,
        lower=lower,
        upper=upper,
        n_obs=n,
        confidence_level=confidence_level,
        definition=undefined if nothing else f"{definition}; {how}; {_DOES_NOT_SEE}",
        label_error=label,
        calibration_error=calibration,
        resolution=resolution,
    )


def _probabilities(field: str, values: ArrayLike) -> Floats:
    p = vector(field, values)
    bad = (p < 0.0) | (p > 1.0)
    if bad.any():
        at = int(np.argmax(bad))
        raise InvalidInput(f"{field}[{at}]", float(p[at]), "be in [0, 1]", "Calibrate raw scores first")
    return p


def expected_performance(
    score: ArrayLike,
    probability: ArrayLike,
    *,
    flagged: ArrayLike | None = None,
    forecast: ArrayLike | None = None,
    cost_if_positive: ArrayLike | None = None,
    cost_if_negative: ArrayLike | None = None,
    noise: CalibrationNoise | None = None,
    confidence_level: float = 0.95,
) -> ExpectedPerformance:
    """Estimates the metrics of rows whose labels are not known yet (confidence-based performance estimation).

    Args:
        score: What the rows are ranked by, shape (n,), without NaN.
        probability: Calibrated probability that each row is a positive, shape (n,), in [0, 1].
        flagged: Which rows were taken for positives, shape (n,), bool or 0 and 1; None leaves out accuracy,
            precision, recall, specificity, F1 and the shares of the confusion matrix.
        forecast: The probability that was given out, which Brier score and log loss judge, shape (n,); None takes
            `probability`. The forecast of what happens is raised to at least 1e-15 in the log loss.
        cost_if_positive: What each row costs if it turns out a positive, shape (n,); needs `cost_if_negative`.
        cost_if_negative: What it costs if not.
        noise: Of the labelled rows that the calibrator was fitted to, over the same scores; None takes the
            probabilities as exact.
        confidence_level: Level, in (0, 1).

    Returns:
        The metrics, with intervals for the values that the labels of these rows will show: normal, on the logit
        scale for metrics in [0, 1], by the delta method; average precision with the variance of pairs of labels, and
        within about three standard deviations of 0 or 1 by the law of a few events, as the end itself may be reached.
        With few expected positives (below about 10) the law of a ratio is not normal, and intervals are rough. A
        ratio of expectations stands for the expectation of a ratio. A row is never paired with itself and counts
        itself as found at its own score, which matters where positives are few. Without rows every metric is NaN.

    Raises:
        InvalidInput: If shapes differ, a value is NaN or out of range, or one of the costs is missing.

    Source: the estimator is that of CBPE (NannyML's documentation, 2022); exact pair and self terms and the variances
    are derived here.

    Example:
        >>> p = np.tile([0.02, 0.05, 0.9], 400)
        >>> found = expected_performance(p, p, flagged=p > 0.5)
        >>> print(found["precision"])
        precision 0.9 (95 % interval 0.8665 to 0.9258, n = 1,200)
        >>> round(found["roc_auc"].value, 4)
        0.947
    """
    scores, p = vector("score", score), _probabilities("probability", probability)
    n = same_length(score=scores, probability=p)
    q = p if forecast is None else _probabilities("forecast", forecast)
    same_length(probability=p, forecast=q)
    if (cost_if_positive is None) != (cost_if_negative is None):
        raise InvalidInput("cost_if_positive and cost_if_negative", None, "be given both or not at all")
    found: dict[str, tuple[float, Floats]] = {}
    if n:
        ranking = ExpectedRanking.of(scores, p)
        found["positive_rate"] = float(p.mean()), np.full(n, 1 / n)
        found["roc_auc"], found["average_precision"] = ranking.roc_auc(), ranking.average_precision()
        loss_1, loss_0 = -np.log(np.maximum(q, _LOG_FLOOR)), -np.log(np.maximum(1 - q, _LOG_FLOOR))
        found["brier"] = expected_loss((1 - q) ** 2, q**2, p)
        found["log_loss"] = expected_loss(loss_1, loss_0, p)
    else:
        found = dict.fromkeys(
            ("positive_rate", "roc_auc", "average_precision", "brier", "log_loss"), (math.nan, np.zeros(0))
        )
    if flagged is not None:
        flags = labels("flagged", flagged)
        same_length(probability=p, flagged=flags)
        found |= expected_by_flag(flags, p) if n else dict.fromkeys(BY_FLAG, (math.nan, np.zeros(0)))
    if cost_if_positive is not None and cost_if_negative is not None:
        cost_1 = vector("cost_if_positive", cost_if_positive, finite=True)
        cost_0 = vector("cost_if_negative", cost_if_negative, finite=True)
        same_length(probability=p, cost_if_positive=cost_1, cost_if_negative=cost_0)
        found["cost"] = expected_loss(cost_1, cost_0, p) if n else (math.nan, np.zeros(0))
    variance_of_label = p * (1 - p)
    estimates = []
    for name, (value, gradient) in found.items():
        spread = (0.0, 0.0)
        if not math.isnan(value):
            spread = (
                float(variance_of_label @ gradient**2),
                noise.variance_of(scores, gradient) if noise is not None else 0.0,
            )
            if name == "average_precision":
                spread = spread[0] + ranking.average_precision_of_pairs(), spread[1]
        undefined = "no rows" if n == 0 else "no rows of the kind that it divides by are expected"
        estimates.append(expected_metric(name, value, spread, n, confidence_level, DEFINITIONS[name], undefined))
    return ExpectedPerformance(estimates=tuple(estimates), n_obs=n, expected_positives=float(p.sum()))


def expected_loss(if_positive: Floats, if_negative: Floats, p: Floats) -> tuple[float, Floats]:
    """Returns the mean of what rows lose and its gradient by each row's label."""
    return float(np.mean(p * if_positive + (1 - p) * if_negative)), (if_positive - if_negative) / len(p)


def expected_multiclass(
    score: ArrayLike,
    probability: ArrayLike,
    predicted: ArrayLike,
    *,
    noise: Sequence[CalibrationNoise] | None = None,
    confidence_level: float = 0.95,
) -> ExpectedPerformance:
    """Estimates macro metrics of a classifier of several classes, one class against the rest.

    Args:
        score: What each class is ranked by, shape (n, k), without NaN.
        probability: Calibrated probabilities, shape (n, k); rows are divided by their sum.
        predicted: Index of the predicted class, shape (n,), 0 to k - 1.
        noise: One for each class, of the labelled rows that its calibrator was fitted to; None takes probabilities
            as exact.
        confidence_level: Level, in (0, 1).

    Returns:
        Accuracy, and the means over classes of area under the ROC curve, average precision, precision, recall,
        specificity and F1; a class that has no value makes the mean NaN.

    Raises:
        InvalidInput: If shapes do not fit, or a value is out of range.

    Example:
        >>> p = np.tile([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]], (50, 1))
        >>> print(expected_multiclass(p, p, p.argmax(axis=1))["accuracy"])
        accuracy 0.8 (95 % interval 0.7283 to 0.8565, n = 150)
    """
    scores, p = np.asarray(score, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] < 2 or scores.shape != p.shape:
        raise InvalidInput("score and probability", (scores.shape, p.shape), "have the same shape (n, k), k at least 2")
    n, k = p.shape
    chosen = vector("predicted", predicted, finite=True)
    if len(chosen) != n or (n and ((chosen < 0) | (chosen >= k) | (chosen != np.floor(chosen))).any()):
        raise InvalidInput("predicted", chosen.shape, f"be {n} whole numbers from 0 to {k - 1}")
    if np.isnan(scores).any() or not np.isfinite(p).all() or (p < 0).any() or (n and not (p.sum(axis=1) > 0).all()):
        raise InvalidInput("score and probability", "NaN or out of range", "be numbers, probabilities at least 0")
    if noise is not None and len(noise) != k:
        raise InvalidInput("noise", len(noise), f"be one for each of the {k} classes")
    p = p / p.sum(axis=1, keepdims=True) if n else p
    names = ("roc_auc", "average_precision", "precision", "recall", "specificity", "f1")
    of_pairs = 0.0
    values: dict[str, list[float]] = {name: [] for name in names}
    gradients = {name: np.zeros((n, k)) for name in (*names, "accuracy")}
    for at in range(k if n else 0):
        flags = chosen == at
        ranking = ExpectedRanking.of(scores[:, at], p[:, at])
        of_class = expected_by_flag(flags, p[:, at])
        of_class["roc_auc"], of_class["average_precision"] = ranking.roc_auc(), ranking.average_precision()
        of_pairs += ranking.average_precision_of_pairs() / k**2
        for name in names:
            values[name].append(of_class[name][0])
            gradients[name][:, at] = of_class[name][1] / k
        gradients["accuracy"][:, at] = flags / n
    means = {name: float(np.mean(found)) if found else math.nan for name, found in values.items()}
    means["accuracy"] = float((p * gradients["accuracy"]).sum()) if n else math.nan
    estimates = []
    for name, value in means.items():
        gradient = gradients[name]
        spread = (0.0, 0.0)
        if not math.isnan(value):
            # Labels of a row are one draw among the classes: their variance is that of the gradient over the classes.
            mean = (p * gradient).sum(axis=1, keepdims=True)
            curve = 0.0
            if noise is not None:
                curve = sum(one.variance_of(scores[:, at], gradient[:, at]) for at, one in enumerate(noise))
            spread = float((p * (gradient - mean) ** 2).sum()), curve
            if name == "average_precision":
                spread = spread[0] + of_pairs, curve
        definition = DEFINITIONS[name] if name == "accuracy" else f"mean over {k} classes of: {DEFINITIONS[name]}"
        undefined = "no rows" if n == 0 else "a class is never predicted or expected"
        estimates.append(expected_metric(name, value, spread, n, confidence_level, definition, undefined))
    return ExpectedPerformance(estimates=tuple(estimates), n_obs=n, expected_positives=float(n))
