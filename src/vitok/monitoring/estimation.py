"""Performance before the labels are in: an estimator fitted once on labelled rows and asked of any window.

`PerformanceEstimator` trusts that the calibration of a score stays what it was. `estimate_under_shift` lets the mix of
rows change: it weighs the labelled rows to look like the window and calibrates anew. Neither sees a change of concept;
`EstimateLedger` keeps what was estimated and grades it by what matured labels later say.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok import settings, stats
from vitok.errors import Conflict, InvalidInput
from vitok.models.calibrators import Calibrator, IsotonicCalibrator, PlattCalibrator, fit_best
from vitok.monitoring.density_ratio import DensityRatio, density_ratio
from vitok.monitoring.profile import ReferenceProfile
from vitok.monitoring.sketches import WindowCounts
from vitok.stats import Estimate
from vitok.stats.arrays import labels, labels_and_scores, numbers, same_length
from vitok.stats.binned_performance import ScoreBins
from vitok.stats.performance_estimation import (
    CalibrationNoise,
    ExpectedPerformance,
    calibration_noise,
    expected_multiclass,
    expected_performance,
)
from vitok.stats.results import Result
from vitok.stats.weighted_means import effective_sample_size, weights_of

_Floats = NDArray[np.float64]
# Below so many effective rows a free curve follows the noise.
_ENOUGH_FOR_ISOTONIC = 1_000
# A window two standard deviations away is covered by two thirds, one six away by seven hundredths.
_LEAST_COVERED = 0.5


def _array(field: str, values: ArrayLike) -> _Floats:
    array = numbers(field, values)
    if array.ndim != 1 or not np.isfinite(array).all():
        fix = "Leave out rows that no model answered"
        raise InvalidInput(field, array.shape, "be finite numbers of shape (n,)", fix)
    return array


@dataclass(frozen=True, kw_only=True)
class PerformanceEstimator:
    """Confidence-based performance estimation: what labelled rows say of the score, applied to rows without labels.

    Attributes:
        calibrator: From the score to a probability.
        noise: How well the labelled rows pin the calibrator down.

    Source: CBPE, as NannyML's documentation describes it.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p = rng.beta(0.5, 5, 20_000)
        >>> estimator = PerformanceEstimator.fit(p[:10_000] ** 2, rng.random(10_000) < p[:10_000])
        >>> found = estimator.estimate(p[10_000:] ** 2, flagged=p[10_000:] > 0.3)
        >>> truth = p[10_000:][p[10_000:] > 0.3].mean()
        >>> bool(found["precision"].lower < truth < found["precision"].upper)
        True
    """

    calibrator: Calibrator
    noise: CalibrationNoise

    @classmethod
    def fit(
        cls,
        score: ArrayLike,
        y: ArrayLike,
        *,
        weight: ArrayLike | None = None,
        calibrator: Calibrator | None = None,
    ) -> "PerformanceEstimator":
        """Learns what a score means from labelled rows.

        Args:
            score: Scores or published probabilities of shape (n,), finite, of rows that the model was not trained on.
            y: Labels of shape (n,), bool or 0 and 1, at least two of each.
            weight: What each row stands for, shape (n,), at least 0, such as one over its propensity; None takes all
                alike.
            calibrator: One that was fitted to these rows; None chooses the kind by cross-validated log loss.

        Raises:
            InvalidInput: If the input is empty, not finite, of one class, or of different shapes.
        """
        scores = _array("score", score)
        if calibrator is None:
            calibrator = fit_best(scores, y, weight=weight).calibrator
        return cls(calibrator=calibrator, noise=calibration_noise(scores, y, weight=weight))

    def estimate(
        self,
        score: ArrayLike,
        *,
        flagged: ArrayLike | None = None,
        forecast: ArrayLike | None = None,
        cost_if_positive: ArrayLike | None = None,
        cost_if_negative: ArrayLike | None = None,
        confidence_level: float = 0.95,
    ) -> ExpectedPerformance:
        """Estimates the metrics of rows without labels; see `vitok.stats.performance_estimation`.

        Args:
            score: As in `fit`, shape (n,), of the window.
            flagged: Which rows were taken for positives, shape (n,).
            forecast: The published probability, which Brier score and log loss judge, shape (n,); None takes the
                calibrated one.
            cost_if_positive: What each row costs if it turns out a positive, shape (n,).
            cost_if_negative: What it costs if not.
            confidence_level: Level, in (0, 1).

        Raises:
            InvalidInput: If shapes differ or values are out of range.
        """
        scores = _array("score", score)
        return expected_performance(
            scores,
            self.calibrator(scores),
            flagged=flagged,
            forecast=forecast,
            cost_if_positive=cost_if_positive,
            cost_if_negative=cost_if_negative,
            noise=self.noise,
            confidence_level=confidence_level,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {"calibrator": self.calibrator.to_dict(), "noise": self.noise.to_dict()}

    @classmethod
    def from_dict(cls, data: Any) -> "PerformanceEstimator":
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a part is missing.
        """
        from vitok.models.calibrators import calibrator_from_dict

        try:
            noise = data["noise"]
            kept = CalibrationNoise(
                edges=tuple(noise["edges"]), variance=tuple(noise["variance"]), n_obs=int(noise["n_obs"])
            )
            return cls(calibrator=calibrator_from_dict(data["calibrator"]), noise=kept)
        except (KeyError, TypeError):
            raise InvalidInput("estimator", data, "have its parts", "Pass what to_dict returned") from None


def realised_performance(
    score: ArrayLike,
    y: ArrayLike,
    *,
    flagged: ArrayLike | None = None,
    forecast: ArrayLike | None = None,
    cost: ArrayLike | None = None,
    confidence_level: float = 0.95,
) -> tuple[Estimate, ...]:
    """Measures the labelled rows of a window by the names under which `PerformanceEstimator` estimated them.

    Args:
        score: What the rows are ranked by, shape (n,).
        y: Labels of shape (n,), bool or 0 and 1.
        flagged: Which rows were taken for positives, shape (n,); None leaves out what rests on it.
        forecast: The published probability, shape (n,); None leaves out Brier score and log loss.
        cost: What each row cost, shape (n,); None leaves it out.
        confidence_level: Level, in (0, 1).

    Returns:
        The metrics, for `EstimateLedger.realise`; those that the rows cannot tell are NaN.

    Raises:
        InvalidInput: If shapes differ or values are out of range.

    Example:
        >>> found = realised_performance([0.1, 0.9, 0.8, 0.2], [0, 1, 0, 0], flagged=[0, 1, 1, 0])
        >>> {each.name: round(each.value, 2) for each in found}["precision"]
        0.5
    """
    level = confidence_level
    truth, ranks = labels_and_scores(y, score)
    n = len(truth)
    found: list[Estimate] = [
        _rate("positive_rate", int(truth.sum()), n, level),
        stats.roc_auc(truth, ranks, confidence_level=level),
        stats.average_precision(truth, ranks, confidence_level=level),
    ]
    if forecast is not None:
        found += [
            stats.brier(truth, forecast, confidence_level=level),
            stats.log_loss(truth, forecast, confidence_level=level),
        ]
    if flagged is not None:
        flags = labels("flagged", flagged)
        same_length(y=truth, flagged=flags)
        tp, fp = int((truth & flags).sum()), int((~truth & flags).sum())
        fn, tn = int((truth & ~flags).sum()), int((~truth & ~flags).sum())
        # F1 is 2 s / (1 + s), where s is the share of true positives among all that is flagged or positive.
        either = _rate("f1", tp, tp + fp + fn, level)
        found += [
            _rate("accuracy", tp + tn, n, level),
            _rate("precision", tp, tp + fp, level),
            _rate("recall", tp, tp + fn, level),
            _rate("specificity", tn, tn + fp, level),
            replace(
                either,
                **{name: 2 * (end := getattr(either, name)) / (1 + end) for name in ("value", "lower", "upper")},
                definition="2 s / (1 + s) of s = true positives over flagged or positive, Wilson score interval of s",
            ),
            _rate("true_positive_share", tp, n, level),
            _rate("false_positive_share", fp, n, level),
            _rate("false_negative_share", fn, n, level),
            _rate("true_negative_share", tn, n, level),
        ]
    if cost is not None:
        found.append(stats.mean_interval(_array("cost", cost), confidence_level=level, name="cost"))
    return tuple(found)


def _rate(name: str, successes: int, n: int, confidence_level: float) -> Estimate:
    return replace(stats.wilson(successes, n, confidence_level=confidence_level), name=name)


def estimate_from_window(
    bins: ScoreBins,
    profile: ReferenceProfile,
    window: WindowCounts,
    *,
    threshold: float | None = None,
    confidence_level: float = 0.95,
) -> ExpectedPerformance:
    """Estimates the performance of a window from the hourly counts of its probability: no row is read.

    Args:
        bins: What labelled rows say of the profile's bins: `ScoreBins.fit(profile.edges[-1], probability, y)`.
        profile: The version's reference profile.
        window: Counts of the window, as `Sketches.window` gives them.
        threshold: Probability from which rows were flagged; must be one of the cuts.
        confidence_level: Level, in (0, 1).

    Returns:
        The metrics; `resolution` says what the bins can have cost.

    Raises:
        Conflict: If the window was counted over other bins than the profile's, or the profile's are not `bins`.
        InvalidInput: If the threshold is not a cut.

    Example:
        >>> from vitok.clock import DAY
        >>> rng = np.random.default_rng(0)
        >>> p = rng.beta(0.5, 5, 5_000)
        >>> profile = ReferenceProfile.fit(["x"], np.zeros((5_000, 1)), p, start=0, end=DAY)
        >>> bins = ScoreBins.fit(profile.edges[-1], p, rng.random(5_000) < p)
        >>> round(bins.expected(profile.counts[-1])["positive_rate"].value, 3)
        0.09
    """
    edges = profile.edges[-1]
    if window.digest != profile.digest or bins.edges != edges.edges:
        raise Conflict(
            f"{window.model_version} was counted over bins {window.digest or 'of no profile'}, the profile has"
            f" {profile.digest}, and the score's bins must be its last: fit ScoreBins to profile.edges[-1]"
        )
    counts = window.counts[-edges.n_bins :]
    return bins.expected(counts, threshold=threshold, confidence_level=confidence_level)


@dataclass(frozen=True, kw_only=True)
class MulticlassEstimator:
    """Performance estimation for several classes: one calibrated against the rest, divided by their sum.

    Attributes:
        calibrators: One for each class.
        noise: One for each class.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p = rng.dirichlet([1.0, 1.0, 1.0], 6_000)
        >>> y = (p.cumsum(axis=1) < rng.random((6_000, 1))).sum(axis=1)
        >>> estimator = MulticlassEstimator.fit(p[:4_000], y[:4_000])
        >>> found = estimator.estimate(p[4_000:], p[4_000:].argmax(axis=1))["accuracy"]
        >>> bool(found.lower < (y[4_000:] == p[4_000:].argmax(axis=1)).mean() < found.upper)
        True
    """

    calibrators: tuple[Calibrator, ...]
    noise: tuple[CalibrationNoise, ...]

    @classmethod
    def fit(cls, score: ArrayLike, y: ArrayLike) -> "MulticlassEstimator":
        """Learns what the scores mean from labelled rows.

        Args:
            score: Shape (n, k), finite.
            y: Index of the true class, shape (n,), 0 to k - 1; every class at least twice.

        Raises:
            InvalidInput: If shapes do not fit, or a class is missing.
        """
        scores, truth = numbers("score", score), np.asarray(y)
        if scores.ndim != 2 or truth.shape != scores.shape[:1]:
            raise InvalidInput("score and y", (scores.shape, truth.shape), "have the shapes (n, k) and (n,)")
        found = [
            PerformanceEstimator.fit(scores[:, at], (truth == at).astype(np.float64)) for at in range(scores.shape[1])
        ]
        return cls(calibrators=tuple(one.calibrator for one in found), noise=tuple(one.noise for one in found))

    def estimate(
        self, score: ArrayLike, predicted: ArrayLike, *, confidence_level: float = 0.95
    ) -> ExpectedPerformance:
        """Estimates accuracy and macro metrics; see `expected_multiclass`.

        Args:
            score: Shape (n, k), finite.
            predicted: Index of the predicted class, shape (n,).
            confidence_level: Level, in (0, 1).
        """
        scores = numbers("score", score)
        if scores.ndim != 2 or scores.shape[1] != len(self.calibrators):
            raise InvalidInput("score", scores.shape, f"have the shape (n, {len(self.calibrators)})")
        p = np.column_stack([one(scores[:, at]) for at, one in enumerate(self.calibrators)])
        return expected_multiclass(scores, p, predicted, noise=self.noise, confidence_level=confidence_level)


@dataclass(frozen=True, kw_only=True)
class ShiftedPerformance(Result):
    """Performance under a changed mix of rows.

    Attributes:
        performance: With the calibration that was weighted to look like the window.
        unweighted: As `PerformanceEstimator` would have it; the difference is what the changed mix does.
        ratio: The density ratio of the labelled rows, and how much it is worth.
        reliable: Whether at least `enough` effective rows stand behind it, and for at least half of the window; if
            not, the window lies where the labelled rows say too little, and only labels can help.
        enough: Effective rows asked for.
        n_effective: Labelled rows of equal weight that say as much as these with all of their weights: the ratio
            times `reference_weight`, cut at the ceiling.
    """

    performance: ExpectedPerformance
    unweighted: ExpectedPerformance
    ratio: DensityRatio
    reliable: bool
    enough: float
    n_effective: float

    def __str__(self) -> str:
        few = f"{self.n_effective:,.0f} effective rows of at least {self.enough:g}, which stand for"
        few += f" {100 * min(self.ratio.covered, 1.0):.0f} % of the window"
        verdict = "" if self.reliable else f"\nnot reliable: {few}"
        return f"{self.performance}\n{self.ratio}{verdict}"


def estimate_under_shift(
    *,
    reference: ArrayLike,
    reference_score: ArrayLike,
    reference_y: ArrayLike,
    current: ArrayLike,
    current_score: ArrayLike,
    flagged: ArrayLike | None = None,
    forecast: ArrayLike | None = None,
    cost_if_positive: ArrayLike | None = None,
    cost_if_negative: ArrayLike | None = None,
    reference_weight: ArrayLike | None = None,
    enough: float = 300.0,
    ceiling: float = 20.0,
    most: int | None = None,
    confidence_level: float = 0.95,
) -> ShiftedPerformance:
    """Estimates performance where the mix of rows has changed, by importance-weighted calibration.

    A score of 0.2 means another frequency among young accounts than among old ones, unless the model is perfect.
    When the share of young accounts grows, the old calibration is wrong though P(y | x) is what it was.

    Args:
        reference: Features of labelled rows, shape (n, f); NaN where a value is missing.
        reference_score: Their scores, shape (n,), finite.
        reference_y: Their labels, shape (n,), both classes present.
        current: Features of the window, shape (m, f).
        current_score: Its scores, shape (m,), finite.
        flagged: As in `PerformanceEstimator.estimate`, and so the next three.
        forecast: See there.
        cost_if_positive: See there.
        cost_if_negative: See there.
        reference_weight: What each labelled row stands for, such as one over its propensity; multiplied into the
            ratio. Give rows whose outcome could not be seen too, with a weight of 0: they count for the mix alone and
            their label is not looked at. Without them the ratio would put right what is missing, and the weight
            would do so once more.
        enough: Effective rows below which the estimate is called unreliable.
        ceiling: Largest density ratio, see `density_ratio`, and largest weight after both: two rows that stand for a
            hundred each say less of the calibration than they would decide.
        most: Rows of the window, drawn at random, that the ratio is learnt from at most; None for all. The estimate
            is of all of them whatever it is.
        confidence_level: Level, in (0, 1).

    Returns:
        The estimate with and without weights.

    Raises:
        InvalidInput: If shapes do not fit or values are out of range.
        MissingExtra: If LightGBM is missing.

    Source: Białek, Kuberski & Perrakis, PAPE, arXiv 2401.08348.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> def rows(n, share):
        ...     young, score = rng.random(n) < share, rng.random(n)
        ...     return np.column_stack([young, score]), score, rng.random(n) < np.where(young, score, score**3)
        >>> (X, score, y), (now, score_now, y_now) = rows(8_000, 0.2), rows(4_000, 0.8)
        >>> found = estimate_under_shift(
        ...     reference=X, reference_score=score, reference_y=y, current=now, current_score=score_now)
        >>> off = abs(found.performance["positive_rate"].value - y_now.mean())
        >>> bool(off < 0.03 < abs(found.unweighted["positive_rate"].value - y_now.mean()))
        True
    """
    scores, now = _array("reference_score", reference_score), _array("current_score", current_score)
    labelled = weights_of("reference_weight", reference_weight, len(scores)) > 0
    known = np.asarray(reference_y, dtype=np.float64)
    before, after = np.asarray(reference, dtype=np.float64), np.asarray(current, dtype=np.float64)
    if known.shape != scores.shape:
        raise InvalidInput("reference_y", known.shape, f"have the shape {scores.shape}, one label for each score")
    for field, rows, n in (("reference", before, len(scores)), ("current", after, len(now))):
        if rows.ndim != 2 or len(rows) != n:
            raise InvalidInput(field, rows.shape, f"have the shape ({n}, f), one row for each score")
    if most is not None and most < 1:
        raise InvalidInput("most", most, "be at least 1")
    # The score is a feature too: where it alone has moved, the weights follow it.
    window = np.column_stack([after, now])
    if most is not None and len(window) > most:
        window = window[np.random.default_rng(settings.current().seed).choice(len(window), most, replace=False)]
    ratio = density_ratio(np.column_stack([before, scores]), window, ceiling=ceiling)
    given = None if reference_weight is None else np.asarray(reference_weight, dtype=np.float64)[labelled]
    weight = ratio.weight[labelled]
    if given is not None:
        weight, given = np.minimum(weight * given, ceiling), np.minimum(given, ceiling)
    scores, known = scores[labelled], known[labelled]
    # A row that stands for a hundred blocks is one row: the ratio alone would count it as none the less.
    n_effective = effective_sample_size(weight)
    kinds = [PlattCalibrator, IsotonicCalibrator] if n_effective >= _ENOUGH_FOR_ISOTONIC else [PlattCalibrator]
    weighted = PerformanceEstimator.fit(
        scores, known, weight=weight, calibrator=fit_best(scores, known, weight=weight, kinds=kinds).calibrator
    )
    plain = PerformanceEstimator.fit(scores, known, weight=given)
    asked: dict[str, Any] = {
        "flagged": flagged,
        "forecast": forecast,
        "cost_if_positive": cost_if_positive,
        "cost_if_negative": cost_if_negative,
        "confidence_level": confidence_level,
    }
    return ShiftedPerformance(
        performance=weighted.estimate(now, **asked),
        unweighted=plain.estimate(now, **asked),
        ratio=ratio,
        reliable=n_effective >= enough and ratio.covered >= _LEAST_COVERED,
        enough=enough,
        n_effective=n_effective,
    )
