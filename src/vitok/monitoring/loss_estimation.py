"""How far a regression's predictions will be off before the truth is in: boosted trees that predict the loss itself."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok import settings
from vitok.errors import InvalidInput, MissingExtra, NotFound
from vitok.stats import Estimate
from vitok.stats.arrays import numbers
from vitok.stats.intervals import normal_quantile
from vitok.stats.results import Result

_Floats = NDArray[np.float64]

_PARAMETERS: Mapping[str, Any] = {
    "objective": "regression",
    "num_leaves": 31,
    "learning_rate": 0.05,
    "min_data_in_leaf": 50,
    "lambda_l2": 1.0,
    "verbosity": -1,
}
_LOSSES = ("mae", "mse")


@dataclass(frozen=True, kw_only=True)
class ExpectedLoss(Result):
    """Losses of a regression before the truth is in.

    Attributes:
        estimates: `mae`, `mse` and `rmse`, each with an interval for the value that the truth of these rows will
            show.
        n_obs: Rows.
    """

    estimates: tuple[Estimate, ...]
    n_obs: int

    def __getitem__(self, name: str) -> Estimate:
        """Returns one loss.

        Raises:
            NotFound: If it is not `mae`, `mse` or `rmse`.
        """
        for estimate in self.estimates:
            if estimate.name == name:
                return estimate
        raise NotFound("loss", name, (estimate.name for estimate in self.estimates))

    def __str__(self) -> str:
        head = f"{self.n_obs:,} rows without truth"
        return "\n".join([head, *(f"  {estimate}" for estimate in self.estimates)])


class LossEstimator:
    """Predicts absolute and squared error from features and prediction (direct loss estimation).

    What it was trained on sets its level; the residuals of rows that each part had not seen set its interval.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.uniform(size=(6_000, 2))
        >>> y = X[:, 0] + rng.normal(size=6_000) * (0.1 + X[:, 1])
        >>> estimator = LossEstimator.fit(X[:4_000], X[:4_000, 0], y[:4_000])
        >>> found = estimator.estimate(X[4_000:], X[4_000:, 0])["mae"]
        >>> bool(found.lower < np.abs(y - X[:, 0])[4_000:].mean() < found.upper)
        True
    """

    def __init__(self, boosters: Mapping[str, Any], residual: Mapping[str, tuple[float, float]], n: int) -> None:
        self._boosters, self._residual, self._n = dict(boosters), dict(residual), n

    def __repr__(self) -> str:
        return f"LossEstimator(of {', '.join(self._boosters)}, learnt from {self._n:,} rows)"

    @classmethod
    def fit(
        cls,
        X: ArrayLike,
        prediction: ArrayLike,
        y: ArrayLike,
        *,
        n_folds: int = 4,
        n_trees: int = 150,
        seed: int | None = None,
    ) -> "LossEstimator":
        """Learns the loss from rows whose truth is known and which the model was not trained on.

        Args:
            X: Features of shape (n, f); NaN where a value is missing.
            prediction: What the model predicted, shape (n,), finite.
            y: The truth, shape (n,), finite.
            n_folds: Parts for the residuals, at least 2.
            n_trees: Trees for each loss.
            seed: Of folds and trees; None takes the one of the settings.

        Raises:
            InvalidInput: If shapes do not fit, a number is not finite, or there are fewer than 20 rows.
            MissingExtra: If LightGBM is missing.
        """
        try:
            import lightgbm
        except ImportError:
            raise MissingExtra("models", "LossEstimator") from None

        rows, guess = _rows(X, prediction)
        truth = numbers("y", y)
        if truth.shape != guess.shape or not np.isfinite(truth).all():
            raise InvalidInput("y", truth.shape, f"be finite numbers of shape {guess.shape}")
        if len(rows) < 20 or not 2 <= n_folds <= len(rows):
            raise InvalidInput("X", rows.shape, "have at least 20 rows, and n_folds be from 2 to their number")
        chosen = settings.current()
        drawn = chosen.seed if seed is None else seed
        fold = np.random.default_rng(drawn).permutation(np.arange(len(rows)) % n_folds)
        parameters = {
            **_PARAMETERS,
            "seed": drawn,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": chosen.threads,
            "min_data_in_leaf": min(50, max(2, len(rows) // 20)),
        }

        def grown(kept: NDArray[np.bool_], loss: _Floats) -> Any:
            data = lightgbm.Dataset(rows[kept], loss[kept], params={"verbosity": -1})
            return lightgbm.train(parameters, data, num_boost_round=n_trees)

        boosters, residual = {}, {}
        error = np.abs(truth - guess)
        for name, loss in zip(_LOSSES, (error, error**2), strict=True):
            held_out = np.empty(len(rows))
            for k in range(n_folds):
                held_out[fold == k] = grown(fold != k, loss).predict(rows[fold == k])
            boosters[name] = grown(np.ones(len(rows), dtype=np.bool_), loss)
            residual[name] = float((loss - held_out).mean()), float((loss - held_out).var(ddof=1))
        return cls(boosters, residual, len(rows))

    def estimate(self, X: ArrayLike, prediction: ArrayLike, *, confidence_level: float = 0.95) -> ExpectedLoss:
        """Estimates the losses of rows whose truth is not known.

        Args:
            X: Features of shape (n, f), as in `fit`.
            prediction: What the model predicted, shape (n,), finite.
            confidence_level: Level, in (0, 1).

        Returns:
            The losses; NaN without rows. The variance is that of the residuals over the rows of the window (chunk
            size) plus the same over the rows learnt from.

        Raises:
            InvalidInput: If shapes do not fit.
        """
        rows, guess = _rows(X, prediction)
        width = int(next(iter(self._boosters.values())).num_feature())
        if rows.shape[1] != width:
            raise InvalidInput("X", (len(rows), rows.shape[1] - 1), f"have the {width - 1} columns of fit")
        n = len(guess)
        z = normal_quantile(confidence_level)
        estimates = []
        for name in _LOSSES:
            value, half = math.nan, math.inf
            if n:
                # The mean residual of unseen rows is the trees' own bias (they shrink towards the mean).
                value = max(0.0, float(self._boosters[name].predict(rows).mean()) + self._residual[name][0])
                half = z * math.sqrt(self._residual[name][1] * (1 / n + 1 / self._n))
            estimates.append(_estimate(name, value, value - half, value + half, n, confidence_level))
        mse = estimates[1]
        ends = [math.sqrt(max(0.0, end)) if not math.isnan(end) else math.nan for end in (mse.lower, mse.upper)]
        root = math.sqrt(mse.value) if n else math.nan
        estimates.append(_estimate("rmse", root, ends[0], ends[1], n, confidence_level))
        return ExpectedLoss(estimates=tuple(estimates), n_obs=n)


def _estimate(name: str, value: float, lower: float, upper: float, n: int, confidence_level: float) -> Estimate:
    names = {"mae": "mean absolute error", "mse": "mean squared error", "rmse": "root of the mean squared error"}
    return Estimate(
        name=name,
        value=value,
        lower=max(0.0, lower) if n else 0.0,
        upper=upper if n else math.inf,
        n_obs=n,
        confidence_level=confidence_level,
        definition=f"expected {names[name]}, by trees that predict the loss; cannot see a change of P(y | x)"
        if n
        else "no rows",
    )


def _rows(X: ArrayLike, prediction: ArrayLike) -> tuple[_Floats, _Floats]:
    matrix, guess = numbers("X", X), numbers("prediction", prediction)
    if matrix.ndim != 2 or guess.shape != matrix.shape[:1] or not np.isfinite(guess).all():
        rule = "have the shapes (n, f) and (n,), predictions finite"
        raise InvalidInput("X and prediction", (matrix.shape, guess.shape), rule)
    return np.column_stack([matrix, guess]), guess
