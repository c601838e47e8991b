"""When to take a new calibrator: only where it is better on rows that came after those it was fitted to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.models.calibrators import Calibrator, fit_best, read_labelled
from vitok.stats import CalibrationError, Estimate, calibration_error, roc_auc
from vitok.stats.arrays import numbers
from vitok.stats.calibration import equal_mass_bins
from vitok.stats.intervals import normal_quantile
from vitok.stats.results import Result
from vitok.stats.weighted_means import weighted_mean_interval, weights_of

_Floats = NDArray[np.float64]
_BINS, _FEWEST = 15, 2.0


@dataclass(frozen=True, kw_only=True, eq=False)
class RefitVerdict(Result):
    """Whether a new calibrator replaces the one in force.

    Attributes:
        taken: Whether the candidate is better on the later rows, with the whole interval.
        difference: Mean log loss of the candidate less that of the incumbent, in nats; below 0 the candidate is
            better.
        incumbent_error: Calibration error of the incumbent on the later rows, by their weights.
        candidate_error: That of the candidate.
        discrimination: Area under the ROC curve of the score on the later rows, all counted alike: no calibrator
            changes it, and a calibrator that looks better while this falls hides a model that has become worse.
        n_fitted: Rows that the candidate was fitted to; 0 where it came from elsewhere.
        n_judged: Later rows.
        candidate: The candidate.
    """

    taken: bool
    difference: Estimate
    incumbent_error: CalibrationError
    candidate_error: CalibrationError
    discrimination: Estimate
    n_fitted: int
    n_judged: int
    candidate: Calibrator

    def to_dict(self) -> dict[str, object]:
        """Returns what JSON can hold, the candidate included."""
        found = {
            name: getattr(self, name).to_dict()
            for name in ("difference", "incumbent_error", "candidate_error", "discrimination", "candidate")
        }
        return {"taken": self.taken, **found, "n_fitted": self.n_fitted, "n_judged": self.n_judged}

    def __str__(self) -> str:
        verdict = "taken" if self.taken else "not taken"
        return (
            f"{self.candidate.kind} calibrator {verdict}: log loss {self.difference.value:+.3g}"
            f" ({self.difference.lower:+.3g} to {self.difference.upper:+.3g}) on {self.n_judged:,} later rows;"
            f" calibration error {self.incumbent_error.value:.3g} to {self.candidate_error.value:.3g}"
            f" at AUC {self.discrimination.value:.3f}"
        )


def judge_calibrator(
    candidate: Calibrator,
    incumbent: Calibrator | None,
    score: ArrayLike,
    y: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    confidence_level: float = 0.95,
    n_fitted: int = 0,
) -> RefitVerdict:
    """Compares two calibrators on rows that neither was fitted to.

    Args:
        candidate: The new one.
        incumbent: The one in force; None takes the scores as they are.
        score: Finite scores of shape (n,), in [0, 1] where there is no incumbent.
        y: Labels of shape (n,), bool or 0 and 1, both present.
        weight: What each row stands for, shape (n,), such as one over its propensity; None takes all alike.
        confidence_level: Level of the interval that decides, in (0, 1).
        n_fitted: Rows that the candidate was fitted to, for the record.

    Returns:
        The verdict, by paired differences of log loss: both calibrators meet the same rows, so that most of the
        noise cancels.

    Raises:
        InvalidInput: If the input is empty, of one class, not finite or of different shapes.

    Example:
        >>> from vitok.models.calibrators import PlattCalibrator
        >>> rng = np.random.default_rng(0)
        >>> p = rng.uniform(0.01, 0.99, 4_000)
        >>> y = rng.random(4_000) < p**2
        >>> new = PlattCalibrator.fit(p[:2_000], y[:2_000])
        >>> judge_calibrator(new, None, p[2_000:], y[2_000:]).taken
        True
    """
    scores, labels, weights = read_labelled(score, y, weight)
    if incumbent is None and not (scores.min() >= 0 and scores.max() <= 1):
        raise InvalidInput("score", float(scores.max()), "be in [0, 1] where there is no incumbent")
    before = scores if incumbent is None else incumbent(scores)
    after = candidate(scores)

    def losses(p: _Floats) -> _Floats:
        return -np.log(np.maximum(np.where(labels == 1, p, 1 - p), 1e-15))

    difference = weighted_mean_interval(
        losses(after) - losses(before), weights, confidence_level=confidence_level, name="log_loss_difference"
    )
    return RefitVerdict(
        taken=difference.upper < 0,
        difference=difference,
        incumbent_error=_calibration_error(labels, before, weights),
        candidate_error=_calibration_error(labels, after, weights),
        discrimination=roc_auc(labels, scores),
        n_fitted=n_fitted,
        n_judged=len(scores),
        candidate=candidate,
    )


def _calibration_error(y: _Floats, p: _Floats, weight: _Floats) -> CalibrationError:
    """Returns `calibration_error` of rows that stand for many or few: their gaps, and the noise of unequal weights."""
    found = calibration_error(y, p)
    if found.n_bins == 0 or float(np.ptp(weight)) == 0.0:
        return found
    place = equal_mass_bins(p, _BINS)
    mass, squares, expected, happened = (
        np.bincount(place, each) for each in (weight, weight**2, weight * p, weight * y)
    )
    # Kish's effective number of rows; a bin that rests on one tells nothing of its noise.
    count = np.divide(mass**2, squares, out=np.zeros_like(mass), where=squares > 0)
    kept = count > _FEWEST
    if not kept.any():
        return replace(found, value=math.nan, lower=0.0, upper=1.0, definition="no bin holds two effective rows")
    mass, count, rate = mass[kept], count[kept], happened[kept] / mass[kept]
    share, gap = mass / mass.sum(), rate - expected[kept] / mass
    noise = rate * (1 - rate) / (count - 1)
    squared = float(share @ (gap**2 - noise))
    spread = math.sqrt(float(share**2 @ (4 * np.maximum(gap**2 - noise, 0.0) * noise + 2 * noise**2)))
    half = normal_quantile(found.confidence_level) * spread
    return replace(
        found,
        value=math.sqrt(max(0.0, squared)),
        lower=math.sqrt(max(0.0, squared - half)),
        upper=min(1.0, math.sqrt(max(0.0, squared + half))),
        n_bins=len(mass),
        definition=f"root mean squared weighted gap over {len(mass)} equal-mass bins, sampling noise subtracted",
    )


def refit_calibrator(
    score: ArrayLike,
    y: ArrayLike,
    event_time: ArrayLike,
    *,
    incumbent: Calibrator | None,
    weight: ArrayLike | None = None,
    kinds: Sequence[type[Calibrator]] | None = None,
    judged: float = 0.4,
    confidence_level: float = 0.95,
) -> RefitVerdict:
    """Fits a candidate to the earlier rows and judges it on the later ones.

    What was judged is what is served: the candidate is not fitted again to all rows, as that one nobody would have
    judged.

    Args:
        score: Finite scores of shape (n,) of decided rows whose labels are mature.
        y: Labels of shape (n,), bool or 0 and 1.
        event_time: Times of the rows in microseconds, shape (n,): the order that counts.
        incumbent: The calibrator in force; None takes the scores as they are.
        weight: What each row stands for, shape (n,), such as one over its propensity; None takes all alike.
        kinds: Calibrators to choose from, by cross-validation on the earlier rows; None for the usual ones.
        judged: Share of the rows, the latest, that judge, in (0, 1).
        confidence_level: Level of the interval that decides, in (0, 1).

    Returns:
        The verdict, with the candidate in it.

    Raises:
        InvalidInput: If a part has one class only, shapes differ, or an argument is out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p = rng.uniform(0.01, 0.99, 6_000)
        >>> found = refit_calibrator(p, rng.random(6_000) < p, np.arange(6_000), incumbent=None)
        >>> found.taken
        False
    """
    scores, labels, times = numbers("score", score), np.asarray(y), np.asarray(event_time)
    if not scores.shape == labels.shape == times.shape or scores.ndim != 1:
        raise InvalidInput("score, y and event_time", (scores.shape, labels.shape, times.shape), "have one shape (n,)")
    if times.dtype.kind not in "iufM" or (times.dtype.kind == "f" and not np.isfinite(times).all()):
        raise InvalidInput("event_time", str(times.dtype), "be times, such as whole microseconds, none missing")
    if not 0 < judged < 1:
        raise InvalidInput("judged", judged, "be in (0, 1)")
    weights = weights_of("weight", weight, len(scores))
    order = np.argsort(times, kind="stable")
    cut = len(order) - round(judged * len(order))
    # Rows of one moment stay on one side: a burst must not be both fitted to and judged on.
    while 0 < cut < len(order) and times[order[cut]] == times[order[cut - 1]]:
        cut += 1
    early, late = order[:cut], order[cut:]
    choice = fit_best(scores[early], labels[early], weight=weights[early], kinds=kinds)
    return judge_calibrator(
        choice.calibrator,
        incumbent,
        scores[late],
        labels[late],
        weight=weights[late],
        confidence_level=confidence_level,
        n_fitted=len(early),
    )
