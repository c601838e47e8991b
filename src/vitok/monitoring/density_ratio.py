"""How likely each reference row is in today's traffic: weights that make an old sample look like the present."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok import settings
from vitok.errors import InvalidInput
from vitok.monitoring.cross_fitting import cross_fit
from vitok.stats import Estimate
from vitok.stats.intervals import normal_quantile
from vitok.stats.performance_estimation import bounded_interval
from vitok.stats.results import Result
from vitok.stats.weighted_means import effective_sample_size

_Floats = NDArray[np.float64]

# Small, strongly regularised trees: the task is to tell two samples apart, mostly alike, and an overconfident
# classifier gives wild ratios.
_PARAMETERS: Mapping[str, Any] = {
    "num_leaves": 15,
    "learning_rate": 0.05,
    "min_data_in_leaf": 100,
    "lambda_l2": 10.0,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class DensityRatio(Result):
    """Density of the current rows over that of the reference, at each reference row.

    Attributes:
        weight: Shape (n,), at least 0, mean 1.
        n_effective: Reference rows of equal weight that say as much.
        clipped: Share of the reference rows whose ratio was cut at the ceiling.
        auc: How well the classifier told the samples apart on rows that it had not seen: 0.5 where nothing moved.
        ceiling: Largest ratio let through.
        covered: Mean of the ratios before they were scaled, which is the share of the current rows that the reference
            stands for: about 1 where it has rows like all of them, about 0 where the current ones lie elsewhere, in
            which case all reference rows are alike far from them and `n_effective` says nothing.
    """

    weight: _Floats
    n_effective: float
    clipped: float
    auc: Estimate
    ceiling: float
    covered: float = 1.0

    def __str__(self) -> str:
        return (
            f"density ratio over {len(self.weight):,} reference rows: {self.n_effective:,.0f} effective,"
            f" {100 * self.clipped:.3g} % cut at {self.ceiling:g}, samples told apart with AUC {self.auc.value:.3f}"
        )

    def to_dict(self) -> dict[str, object]:
        """Returns what JSON can hold, without the weights."""
        return {
            "n_obs": len(self.weight),
            "n_effective": self.n_effective,
            "clipped": self.clipped,
            "auc": self.auc.to_dict(),
            "ceiling": self.ceiling,
            "covered": self.covered,
        }


def density_ratio(
    reference: ArrayLike,
    current: ArrayLike,
    *,
    n_folds: int = 4,
    n_trees: int = 60,
    ceiling: float = 20.0,
    seed: int | None = None,
) -> DensityRatio:
    """Weighs reference rows by a classifier that tells them from current rows, each row by one that never saw it.

    Args:
        reference: Features of shape (n, f), n at least `n_folds`; NaN where a value is missing.
        current: Features of shape (m, f), m at least `n_folds`.
        n_folds: Parts for cross-fitting, at least 2.
        n_trees: Trees of each classifier.
        ceiling: Ratios are cut here, above 1: a few rows with huge weights are noise, and what lies outside the
            reference can be estimated from no weight at all.
        seed: Of the folds and trees; None takes the one of the settings.

    Returns:
        The weights. Where the current rows lie where the reference has few, `n_effective` is small; where it has
        none, `covered` is. No estimate should be built on them then.

    Raises:
        InvalidInput: If shapes do not fit, or an argument is out of range.
        MissingExtra: If LightGBM is missing.

    Source: Sugiyama, Suzuki & Kanamori, Density Ratio Estimation in Machine Learning, 2012, chapter 4.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> found = density_ratio(rng.normal(size=(2_000, 1)), rng.normal(size=(1_000, 1)) + 1.0)
        >>> found.auc.lower > 0.7, found.n_effective < 1_500
        (True, True)
    """
    before, now = np.asarray(reference, dtype=np.float64), np.asarray(current, dtype=np.float64)
    if before.ndim != 2 or now.ndim != 2 or before.shape[1] != now.shape[1] or before.shape[1] == 0:
        raise InvalidInput("reference and current", (before.shape, now.shape), "have the shapes (n, f) and (m, f)")
    if n_folds < 2 or min(len(before), len(now)) < n_folds:
        raise InvalidInput("n_folds", n_folds, f"be from 2 to the {min(len(before), len(now))} rows of a sample")
    if not ceiling > 1:
        raise InvalidInput("ceiling", ceiling, "be above 1")
    drawn = settings.current().seed if seed is None else seed
    told = cross_fit(before, now, parameters=_PARAMETERS, n_folds=n_folds, n_trees=n_trees, seed=drawn)
    auc, error = told.auc()
    level = 0.95
    lower, upper = bounded_interval(auc, error, normal_quantile(level), 0.0, 1.0)
    ratio = np.exp(np.minimum(told.logit[: len(before)], math.log(1e12)))
    weight = np.minimum(ratio, ceiling)
    return DensityRatio(
        weight=weight / weight.mean(),
        n_effective=effective_sample_size(weight),
        clipped=float(np.mean(ratio > ceiling)),
        auc=Estimate(
            name="roc_auc",
            value=auc,
            lower=lower,
            upper=upper,
            n_obs=len(before) + len(now),
            confidence_level=level,
            definition="area under the ROC curve of cross-fitted ranks, interval from twice DeLong's variance",
        ),
        ceiling=ceiling,
        covered=float(weight.mean()),
    )
