"""Joint drift: each feature may stand still while how they go together changes; two ways to see it.

`RandomFeatures` are sums that merge like counts, so windows of any length come from the same hours; they see that
something changed together, and cost little. `domain_classifier` needs rows of both sides, and says which features
tell them apart.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.decisions.schema import FEATURE_PREFIX
from vitok.errors import InvalidInput, MissingExtra
from vitok.monitoring.cross_fitting import cross_fit
from vitok.stats import FrozenEdges
from vitok.stats.arrays import numbers
from vitok.stats.results import Result

if TYPE_CHECKING:
    import polars as pl

# On ranks in [0, 1]: a kernel much wider sees only means, one much narrower only noise.
_WIDTH = 0.35
_NULL_RANK = -0.5
MIN_DAY = 200
"""Fewest rows of a day of the reference that says how much days differ anyway."""
_ROWS_AT_ONCE = 20_000


@dataclass(frozen=True, kw_only=True, eq=False)
class RandomFeatures:
    """Random Fourier features of pairs of columns, and what the reference showed of them.

    Each feature takes two columns at random, as ranks among the reference, and is the cosine of a random wave over
    them. The distance of two means of features is that of two distributions under a Gaussian kernel (maximum mean
    discrepancy), summed over the chosen pairs: pairs, since in thirty dimensions a kernel over all of them is nearly
    blind to a change of two.

    Pairs are dealt out evenly: with as many features as there are pairs each has one, with fewer some go unseen.

    Attributes:
        seed: Which features; the same seed and columns give the same.
        pairs: Shape (d, 2), the columns of each feature.
        waves: Shape (d, 2), its frequencies.
        phases: Shape (d,).
        mean: Shape (d,), their mean over the reference.
        trace: Sum of their variances there.
        trace_squared: Sum of their squared covariances there.
        n: Rows of the reference.
        variances: Shape (d,), the variance of each there; empty in profiles that did not keep them.
        ordinary: Largest effect and largest effect of a pair among single days of the reference; 0 where they are not
            known.

    Source: Rahimi & Recht, NIPS 2007; Gretton et al., JMLR 2012.
    """

    seed: int
    pairs: NDArray[np.int64]
    waves: NDArray[np.float64]
    phases: NDArray[np.float64]
    mean: NDArray[np.float64]
    trace: float
    trace_squared: float
    n: int
    variances: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    ordinary: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def fit(
        cls,
        edges: Sequence[FrozenEdges],
        counts: Sequence[NDArray[np.int64]],
        X: ArrayLike,
        *,
        n_features: int = 256,
        seed: int = 0,
        columns: Sequence[int] | None = None,
        day: NDArray[np.int64] | None = None,
    ) -> "RandomFeatures":
        """Draws the features and measures them on the reference.

        Args:
            edges: Bins of the f features, at least 2 of them.
            counts: Reference counts in them.
            X: Shape (n, f), the reference.
            n_features: How many, d.
            seed: Which.
            columns: Places of the columns that pairs are made of, at least 2; None for all.
            day: Shape (n,), the day of each row: with them it learns how much single days differ anyway.

        Raises:
            InvalidInput: If there are fewer than two columns.
        """
        matrix = np.asarray(X, dtype=np.float64)
        n_columns = matrix.shape[1] if matrix.ndim == 2 else 0
        chosen = range(n_columns) if columns is None else columns
        if len(chosen) < 2:
            raise InvalidInput("X", matrix.shape, "have at least two columns", "One column has no joint distribution")
        rng = np.random.default_rng(seed)
        every = np.array(list(itertools.combinations(chosen, 2)), dtype=np.int64)
        rounds = -(-n_features // len(every))
        pairs = np.concatenate([every[rng.permutation(len(every))] for _ in range(rounds)])[:n_features]
        waves = rng.normal(0.0, 1.0 / _WIDTH, (n_features, 2))
        phases = rng.uniform(0.0, 2 * math.pi, n_features)
        bare = cls(
            seed=seed, pairs=pairs, waves=waves, phases=phases, mean=np.zeros(n_features), trace=0.0,
            trace_squared=0.0, n=len(matrix),
        )  # fmt: skip
        ranks = _ranks(edges, counts)
        days, place = np.unique(np.zeros(len(matrix)) if day is None else day, return_inverse=True)
        by_day, second = np.zeros((len(days), n_features)), np.zeros((n_features, n_features))
        for start in range(0, len(matrix), _ROWS_AT_ONCE):
            found = bare._features(_ranked(edges, ranks, matrix[start : start + _ROWS_AT_ONCE]))
            of = place[start : start + _ROWS_AT_ONCE]
            for each in np.unique(of).tolist():
                by_day[each] += found[of == each].sum(axis=0)
            second += found.T @ found
        mean = by_day.sum(axis=0) / len(matrix)
        covariance = second / len(matrix) - np.outer(mean, mean)
        whole = replace(
            bare, mean=mean, trace=float(np.trace(covariance)), trace_squared=float((covariance**2).sum()),
            variances=np.maximum(np.diag(covariance), 0.0),
        )  # fmt: skip
        return replace(whole, ordinary=_ordinary(whole, by_day, np.bincount(place, minlength=len(days))))

    @property
    def n_features(self) -> int:
        """How many features, d."""
        return len(self.phases)

    def sums(
        self, edges: Sequence[FrozenEdges], counts: Sequence[NDArray[np.int64]], X: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Returns the sums of the features over rows, shape (d,); sums of parts add up to the sum of the whole."""
        ranks = _ranks(edges, counts)
        total = np.zeros(self.n_features)
        for start in range(0, len(X), _ROWS_AT_ONCE):
            total += self._features(_ranked(edges, ranks, X[start : start + _ROWS_AT_ONCE])).sum(axis=0)
        return total

    def _features(self, ranked: NDArray[np.float64]) -> NDArray[np.float64]:
        angle = ranked[:, self.pairs[:, 0]] * self.waves[:, 0]
        angle += ranked[:, self.pairs[:, 1]] * self.waves[:, 1]
        angle += self.phases
        return np.asarray(np.cos(angle))

    def test(self, sums: ArrayLike, n: int, *, names: Sequence[str] = ()) -> "JointDrift":
        """Compares a window with the reference.

        Args:
            sums: Shape (d,), sums of the features over the window.
            n: Its rows, at least 1.
            names: Names of the columns, to name the pair that stands out; its places where none are given.

        Returns:
            The discrepancy; its null law is a sum of chi-squares, taken as a gamma with its exact mean and variance
            at independent rows. Like every null law of rows, it is too narrow where the same entity comes many times.

        Example:
            >>> rng = np.random.default_rng(0)
            >>> X = rng.normal(size=(4_000, 2))
            >>> edges = [FrozenEdges.from_values(column) for column in X.T]
            >>> counts = [frozen.count(column) for frozen, column in zip(edges, X.T, strict=True)]
            >>> features = RandomFeatures.fit(edges, counts, X)
            >>> same = rng.normal(size=(1_000, 2))
            >>> turned = np.column_stack([same[:, 0], same[:, 0]])
            >>> [features.test(features.sums(edges, counts, one), 1_000).p_value < 0.001 for one in (same, turned)]
            [False, True]
        """
        from scipy.special import gammaincc, ndtr

        if n < 1:
            return JointDrift(discrepancy=math.nan, null_mean=math.nan, p_value=1.0, effect=0.0, n_current=0)
        gap = np.asarray(sums, dtype=np.float64) / n - self.mean
        value, rate = 2 * float(gap @ gap) / self.n_features, 2 * (1 / n + 1 / self.n) / self.n_features
        mean, variance = rate * self.trace, 2 * rate**2 * self.trace_squared
        p_value = float(gammaincc(mean**2 / variance, value * mean / variance)) if variance > 0 else 1.0
        found = JointDrift(
            discrepancy=value,
            null_mean=mean,
            p_value=p_value,
            effect=max(0.0, value - mean),
            n_current=n,
            ordinary_effect=self.ordinary[0],
            ordinary_pair_effect=self.ordinary[1],
        )
        if not len(self.variances):
            return found
        # One pair in hundreds hardly moves the mean over all features; the feature that moved most shows it.
        noise = self.variances * (1 / n + 1 / self.n)
        far = np.abs(gap) / np.sqrt(np.maximum(noise, 1e-300))
        at = int(np.argmax(np.where(noise > 0, far, 0.0)))
        chosen = self.pairs[at].tolist()
        return replace(
            found,
            pair=tuple(names[one] if len(names) else str(one) for one in chosen),
            pair_p_value=min(1.0, 2 * self.n_features * float(ndtr(-far[at]))) if noise[at] > 0 else 1.0,
            pair_effect=max(0.0, 2 * float(gap[at] ** 2 - noise[at])),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold; `from_dict` gives back the same."""
        return {
            "seed": self.seed,
            "pairs": self.pairs.tolist(),
            "waves": self.waves.tolist(),
            "phases": self.phases.tolist(),
            "mean": self.mean.tolist(),
            "trace": self.trace,
            "trace_squared": self.trace_squared,
            "n": self.n,
            "variances": self.variances.tolist(),
            "ordinary": list(self.ordinary),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RandomFeatures":
        """Reads what `to_dict` wrote."""
        return cls(
            seed=int(data["seed"]),
            pairs=np.array(data["pairs"], dtype=np.int64),
            waves=np.array(data["waves"]),
            phases=np.array(data["phases"]),
            mean=np.array(data["mean"]),
            trace=float(data["trace"]),
            trace_squared=float(data["trace_squared"]),
            n=int(data["n"]),
            # The first profiles kept neither.
            variances=np.array(data.get("variances", []), dtype=np.float64),
            ordinary=(float(data.get("ordinary", (0, 0))[0]), float(data.get("ordinary", (0, 0))[1])),
        )


@dataclass(frozen=True, kw_only=True)
class JointDrift(Result):
    """How far the joint distribution of a window is from the reference's.

    Attributes:
        discrepancy: Squared maximum mean discrepancy, averaged over the random features.
        null_mean: Its mean where nothing has changed.
        p_value: Chance of at least this there.
        effect: The discrepancy less its null mean, at least 0; 1 is as far as it goes.
        n_current: Rows of the window.
        pair: The two columns whose feature moved most, beyond its noise; empty where that is not known.
        pair_p_value: Chance that any of the features moves as far without change, at most (Bonferroni).
        pair_effect: The same distance for that feature alone, less its null mean, at least 0.
        ordinary_effect: Largest effect among single days of the reference; 0 where they are not known.
        ordinary_pair_effect: Largest effect of a pair among them.
    """

    discrepancy: float
    null_mean: float
    p_value: float
    effect: float
    n_current: int
    pair: tuple[str, ...] = ()
    pair_p_value: float = 1.0
    pair_effect: float = 0.0
    ordinary_effect: float = 0.0
    ordinary_pair_effect: float = 0.0

    def __str__(self) -> str:
        pair = f"; most in {' with '.join(self.pair)}: effect {self.pair_effect:.3g}" if self.pair else ""
        return (
            f"joint discrepancy {self.discrepancy:.3g} (without change {self.null_mean:.3g}; effect {self.effect:.3g},"
            f" p = {self.p_value:.3g}){pair}"
        )


def _ordinary(whole: RandomFeatures, by_day: NDArray[np.float64], n: NDArray[np.int64]) -> tuple[float, float]:
    """Returns the largest effects of single days, each held against all others."""
    largest = 0.0, 0.0
    for sums, rows in zip(by_day, n.tolist(), strict=True):
        others = whole.n - rows
        if min(rows, others) >= MIN_DAY:
            found = replace(whole, mean=(whole.mean * whole.n - sums) / others, n=others).test(sums, rows)
            largest = max(largest[0], found.effect), max(largest[1], found.pair_effect)
    return largest


def _ranks(edges: Sequence[FrozenEdges], counts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
    """Returns for each column the middle rank of each bin among the reference's values; nulls lie apart."""
    found = []
    for frozen, count in zip(edges, counts, strict=True):
        placed = count.astype(np.float64)
        placed[0] = 0.0
        below = np.cumsum(placed) - placed
        rank = (below + placed / 2) / max(placed.sum(), 1.0)
        rank[0] = _NULL_RANK
        assert len(rank) == frozen.n_bins  # noqa: S101
        found.append(rank)
    return found


def _ranked(
    edges: Sequence[FrozenEdges], ranks: Sequence[NDArray[np.float64]], X: NDArray[np.float64]
) -> NDArray[np.float64]:
    found = np.empty(X.shape)
    for at, (frozen, rank) in enumerate(zip(edges, ranks, strict=True)):
        found[:, at] = rank[frozen.places(X[:, at])]
    return found


@dataclass(frozen=True, kw_only=True)
class DomainClassifier(Result):
    """How well a classifier tells rows of a window from rows of the reference.

    Attributes:
        auc: Area under the curve of cross-fitted scores: 0.5 where nothing tells them apart, 1 where all does.
        p_value: Chance of at least this area where nothing has changed, at most; see `CrossFit.auc`.
        n_reference: Rows of the reference that were used.
        n_current: Rows of the window.
        features: The features that tell them apart, by share of the gain, largest first.
    """

    auc: float
    p_value: float
    n_reference: int
    n_current: int
    features: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        named = ", ".join(f"{name} {share:.0%}" for name, share in self.features[:3])
        return f"domain classifier AUC {self.auc:.3f} (p = {self.p_value:.3g}): {named}"


def domain_classifier(
    names: Sequence[str], reference: ArrayLike, current: ArrayLike, *, folds: int = 4, seed: int = 0
) -> DomainClassifier:
    """Fits boosted trees that tell a window from the reference, and judges them on rows they were not fitted on.

    Each row is scored by trees of the other folds. Features are named by the gain of the trees, which is 0 evidence
    where the area itself is near one half.

    Args:
        names: Names of the f features.
        reference: Shape (n, f), NaN where there is no value; n at least `2 * folds`.
        current: Shape (m, f), as many at least.
        folds: How many, at least 2.
        seed: Of the folds and the trees.

    Raises:
        InvalidInput: If shapes do not fit, there are too few rows, or fewer than 2 folds.
        MissingExtra: If LightGBM is missing.

    Source: Lopez-Paz & Oquab, ICLR 2017 (classifier two-sample tests); DeLong et al., Biometrics 1988.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> a, b = rng.normal(size=(600, 3)), rng.normal(size=(600, 3)) + [0, 1, 0]
        >>> found = domain_classifier(["x", "y", "z"], a, b)
        >>> found.auc > 0.65, found.p_value < 1e-6, found.features[0][0]
        (True, True, 'y')
    """
    from scipy.special import ndtr

    if folds < 2:
        raise InvalidInput("folds", folds, "be at least 2")
    if not names:
        raise InvalidInput("names", [], "be at least one")
    a, b = numbers("reference", reference), numbers("current", current)
    for side, rows in (("reference", a), ("current", b)):
        if rows.ndim != 2 or rows.shape[1] != len(names):
            raise InvalidInput(side, rows.shape, f"have the shape (n, {len(names)}), one column for each name")
        if len(rows) < 2 * folds:
            raise InvalidInput(side, len(rows), f"have at least {2 * folds} rows, two for each fold")
    parameters = {
        "num_leaves": 15,
        "learning_rate": 0.1,
        "min_data_in_leaf": max(5, min(100, (len(a) + len(b)) // 50)),
    }
    told = cross_fit(a, b, parameters=parameters, n_folds=folds, n_trees=60, seed=seed)
    auc, error = told.auc()
    p_value = float(ndtr(-(auc - 0.5) / error)) if error > 0 else float(auc <= 0.5)
    gain = told.gain
    share = gain / gain.sum() if gain.sum() > 0 else gain
    order = np.argsort(-share, kind="stable")
    return DomainClassifier(
        auc=auc,
        p_value=p_value,
        n_reference=len(a),
        n_current=len(b),
        features=tuple((names[at], float(share[at])) for at in order if share[at] > 0),
    )


def told_apart(
    names: Sequence[str],
    before: "pl.DataFrame",
    now: "pl.DataFrame",
    *,
    ignored: Collection[str] = (),
    most: int = 5_000,
) -> DomainClassifier | None:
    """Says which features tell the decisions of one time from those of another, from samples of both.

    Args:
        names: The features.
        before: Decisions of the one time, as the log has them.
        now: Those of the other.
        ignored: Features that are left out.
        most: Rows that are drawn of each at most, so that the cost is bounded.

    Returns:
        The classifier; None where a side has fewer than 200 rows or not all of the features, or LightGBM is not there.
    """
    import polars as pl

    watched = [name for name in names if name not in ignored]
    columns = [FEATURE_PREFIX + name for name in watched]
    sides = (before, now)
    if not watched or any(len(rows) < MIN_DAY or not set(columns) <= set(rows.columns) for rows in sides):
        return None
    a, b = (
        (rows.sample(most, seed=0) if len(rows) > most else rows).select(pl.col(columns).cast(pl.Float64)).to_numpy()
        for rows in sides
    )
    try:
        return domain_classifier(watched, a, b)
    except MissingExtra:
        return None
