"""Sets and intervals that hold the truth as often as they promise, from the errors of rows that were not trained on.

The promise is for rows exchangeable with the calibration rows, on average over them. It fails under drift: adaptive
inference corrects the level as outcomes come in, and coverage is watched like any other rate.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats.arrays import Flags, Floats, labels, numbers, open_unit, vector
from vitok.stats.confidence_sequences import rate_sequence
from vitok.stats.intervals import clopper_pearson
from vitok.stats.results import Estimate, Result

_ALL = ""


def conformal_quantile(scores: ArrayLike, coverage: float) -> float:
    """Returns the score that a new row stays at or below with at least the given probability.

    Args:
        scores: Nonconformity scores of the calibration rows, shape (n,), larger meaning stranger.
        coverage: Coverage promised, any number: at or below 0 the answer is -inf.

    Returns:
        The ceil((n + 1) coverage)-th smallest score; infinite where n is too small for the promise.

    Source: Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005.

    Example:
        >>> conformal_quantile([1.0, 2.0, 3.0, 4.0], 0.8), conformal_quantile([1.0, 2.0], 0.9)
        (4.0, inf)
    """
    array = vector("scores", scores)
    # The product is rounded before it is raised, or (n + 1) 0.9 = 9.000000000000002 would ask for the tenth.
    rank = math.ceil(round((len(array) + 1) * coverage, 9))
    if rank <= 0:
        return -math.inf
    if rank > len(array):
        return math.inf
    return float(np.partition(array, rank - 1)[rank - 1])


def _groups(group: Sequence[Hashable] | NDArray[Any] | None, n: int) -> list[str]:
    if group is None:
        return [_ALL] * n
    names = [str(one) for one in (group.tolist() if isinstance(group, np.ndarray) else group)]
    if len(names) != n:
        raise InvalidInput("group", len(names), f"be {n}, one for each row")
    return names


def _by_group(scores: Floats, names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    # By one sort: a pass over all rows for each of many slices would take hours.
    distinct, group = np.unique(np.array(names, dtype=np.str_), return_inverse=True)
    ordered = scores[np.lexsort((scores, group))]
    ends = np.cumsum(np.bincount(group, minlength=len(distinct)))
    parts = np.split(ordered, ends[:-1]) if len(distinct) else []
    return {name: tuple(part.tolist()) for name, part in zip(distinct.tolist(), parts, strict=True)}


def _kept(data: Mapping[str, Any]) -> tuple[dict[str, tuple[float, ...]], float]:
    if not isinstance(data.get("scores"), Mapping) or "coverage" not in data:
        raise InvalidInput("data", sorted(data), "have scores and coverage", "Pass what to_dict returned")
    scores = {
        str(name): tuple(np.sort(vector(f"scores[{name!r}]", part)).tolist()) for name, part in data["scores"].items()
    }
    return scores, open_unit("coverage", data["coverage"])


@dataclass(frozen=True, kw_only=True)
class ConformalSets(Result):
    """Sets of classes that hold the true one as often as promised.

    Attributes:
        scores: Sorted nonconformity scores (1 - probability of the true class) of the calibration rows, by group.
        coverage: Coverage promised, in (0, 1).
        by_class: Whether the groups are the classes, so that the promise holds for each class on its own.

    Source: split conformal prediction with the score of Sadinle, Lei & Wasserman, JASA 2019; Mondrian groups of Vovk
    et al. 2003.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p = rng.dirichlet([1, 1, 1], 2_000)
        >>> y = (p.cumsum(axis=1) < rng.random((2_000, 1))).sum(axis=1)
        >>> sets = ConformalSets.fit(p[:1_000], y[:1_000], coverage=0.9)
        >>> held = sets.predict(p[1_000:])[np.arange(1_000), y[1_000:]]
        >>> bool(abs(held.mean() - 0.9) < 0.03)
        True
    """

    scores: Mapping[str, tuple[float, ...]]
    coverage: float
    by_class: bool = False

    @classmethod
    def fit(
        cls,
        probability: ArrayLike,
        y: ArrayLike,
        *,
        coverage: float = 0.9,
        group: Sequence[Hashable] | NDArray[Any] | None = None,
        by_class: bool = False,
    ) -> "ConformalSets":
        """Keeps the scores of calibration rows.

        Args:
            probability: Shape (n, k), of rows that the model was not trained on.
            y: Index of the true class, shape (n,).
            coverage: Coverage promised, in (0, 1).
            group: Slice of each row: the promise then holds for each slice (Mondrian). None for one promise.
            by_class: Promise for each class instead; not together with `group`.

        Raises:
            InvalidInput: If shapes do not fit, or both kinds of groups are asked for.
        """
        p, codes = _classes(probability, y)
        if by_class and group is not None:
            raise InvalidInput("by_class", by_class, "not be given together with group")
        strange = 1 - p[np.arange(len(p)), codes]
        names = [str(code) for code in codes.tolist()] if by_class else _groups(group, len(p))
        return cls(scores=_by_group(strange, names), coverage=open_unit("coverage", coverage), by_class=by_class)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ConformalSets":
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a part is missing.
        """
        scores, coverage = _kept(data)
        return cls(scores=scores, coverage=coverage, by_class=bool(data.get("by_class", False)))

    def predict(
        self,
        probability: ArrayLike,
        *,
        group: Sequence[Hashable] | NDArray[Any] | None = None,
        coverage: float | None = None,
    ) -> Flags:
        """Returns which classes are in the set of each row, shape (n, k).

        Args:
            probability: Shape (n, k).
            group: Slice of each row, if the calibration had slices; one that it did not have gets every class.
            coverage: Another coverage than promised, as `AdaptiveCoverage` gives it; None for the promised one.

        Raises:
            InvalidInput: If a probability is NaN, or shapes do not fit.
        """
        p = numbers("probability", probability)
        if p.ndim != 2 or np.isnan(p).any():
            # A comparison with NaN is false: the set would be empty without a word.
            raise InvalidInput("probability", p.shape, "have the shape (n, k), no NaN", "Impute or leave out such rows")
        wanted = self.coverage if coverage is None else coverage
        if self.by_class:
            limits = np.array([self._limit(str(at), wanted) for at in range(p.shape[1])])
            return 1 - p <= limits + 1e-12
        names = _groups(group, len(p))
        limit = {name: self._limit(name, wanted) for name in set(names)}
        return 1 - p <= np.array([limit[name] for name in names]).reshape(-1, 1) + 1e-12

    def _limit(self, name: str, coverage: float) -> float:
        return conformal_quantile(self.scores.get(name, ()), coverage)


def _classes(probability: ArrayLike, y: ArrayLike) -> tuple[Floats, NDArray[np.intp]]:
    p, truth = numbers("probability", probability), np.asarray(y)
    if p.ndim != 2 or truth.shape != p.shape[:1] or np.isnan(p).any():
        raise InvalidInput("probability and y", (p.shape, truth.shape), "have the shapes (n, k) and (n,), no NaN")
    codes = truth.astype(np.intp)
    if (codes != truth).any() or (codes < 0).any() or (codes >= p.shape[1]).any():
        raise InvalidInput("y", truth[:5].tolist(), f"be whole numbers from 0 to {p.shape[1] - 1}")
    return p, codes


@dataclass(frozen=True, kw_only=True)
class ConformalIntervals(Result):
    """Intervals around a prediction, or around its quantiles, that hold the truth as often as promised.

    Attributes:
        scores: Sorted scores of the calibration rows by group: how far the truth lay outside [lower, upper], below
            0 inside; for a point prediction lower and upper are the same.
        coverage: Coverage promised, in (0, 1).

    Source: Lei et al., JASA 2018; conformalised quantile regression of Romano, Patterson & Candès, NeurIPS 2019.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.normal(size=2_000)
        >>> found = ConformalIntervals.fit(y[:1_000], np.zeros(1_000), coverage=0.9)
        >>> low, high = found.predict(np.zeros(1))
        >>> bool(abs(high[0] - 1.645) < 0.15)
        True
    """

    scores: Mapping[str, tuple[float, ...]]
    coverage: float

    @classmethod
    def fit(
        cls,
        y: ArrayLike,
        lower: ArrayLike,
        upper: ArrayLike | None = None,
        *,
        coverage: float = 0.9,
        group: Sequence[Hashable] | NDArray[Any] | None = None,
    ) -> "ConformalIntervals":
        """Keeps the scores of calibration rows.

        Args:
            y: The truth, shape (n,), finite.
            lower: The prediction, or its lower quantile, shape (n,), finite.
            upper: Its upper quantile, shape (n,); None for a point prediction.
            coverage: Coverage promised, in (0, 1).
            group: Slice of each row: the promise then holds for each slice. None for one promise.

        Raises:
            InvalidInput: If shapes differ or a number is not finite.
        """
        truth, low, high = _bounds(y, lower, upper)
        strange = np.maximum(low - truth, truth - high)
        return cls(scores=_by_group(strange, _groups(group, len(truth))), coverage=open_unit("coverage", coverage))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ConformalIntervals":
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a part is missing.
        """
        scores, coverage = _kept(data)
        return cls(scores=scores, coverage=coverage)

    def predict(
        self,
        lower: ArrayLike,
        upper: ArrayLike | None = None,
        *,
        group: Sequence[Hashable] | NDArray[Any] | None = None,
        coverage: float | None = None,
    ) -> tuple[Floats, Floats]:
        """Returns the ends of the intervals, each of shape (n,).

        Args:
            lower: The prediction, or its lower quantile, shape (n,).
            upper: Its upper quantile; None for a point prediction.
            group: Slice of each row; one that the calibration did not have gets an infinite interval.
            coverage: Another coverage than promised, as `AdaptiveCoverage` gives it; None for the promised one.

        Returns:
            Ends; where quantiles are drawn in past each other both ends are their middle.
        """
        low = vector("lower", lower, finite=True)
        _, low, high = _bounds(low, low, upper)
        wanted = self.coverage if coverage is None else coverage
        names = _groups(group, len(low))
        limit = {name: conformal_quantile(self.scores.get(name, ()), wanted) for name in set(names)}
        margin = np.array([limit[name] for name in names])
        below, above = low - margin, high + margin
        middle = (low + high) / 2
        crossed = below > above
        return np.where(crossed, middle, below), np.where(crossed, middle, above)


def _bounds(y: ArrayLike, lower: ArrayLike, upper: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    truth, low = vector("y", y, finite=True), vector("lower", lower, finite=True)
    high = low if upper is None else vector("upper", upper, finite=True)
    if not truth.shape == low.shape == high.shape:
        raise InvalidInput("y, lower and upper", (truth.shape, low.shape, high.shape), "have the same shape (n,)")
    return truth, low, high


@dataclass(frozen=True, kw_only=True)
class AdaptiveCoverage:
    """Adaptive conformal inference: asks for more coverage after a miss and for less after a hit.

    Over any sequence at all, drifting or hostile, the share of misses comes within (max(alpha, 1 - alpha) + rate) /
    (rate t) of what was promised, alpha being 1 - target: where a level of 1 and more gives the set of everything and
    one of 0 and less a set that holds no truth. (`ConformalIntervals` shrink to a point there: where predictions hit
    the truth exactly, fewer misses than promised come.) With batches of m, it is m times the rate in the numerator.

    Attributes:
        target: Coverage promised, in (0, 1).
        rate: Step, above 0: larger follows faster and swings more.
        level: Coverage to ask for next; may leave [0, 1], where sets are everything or nothing.
        n_obs: Outcomes so far.
        n_missed: Misses so far.

    Source: Gibbs & Candès, Adaptive Conformal Inference Under Distribution Shift, NeurIPS 2021.

    Example:
        >>> watch = AdaptiveCoverage.start(0.9, rate=0.05)
        >>> round(watch.update(covered=False).level, 3), round(watch.update(covered=True).level, 3)
        (0.945, 0.895)
    """

    target: float
    rate: float
    level: float
    n_obs: int = 0
    n_missed: int = 0

    @classmethod
    def start(cls, target: float, *, rate: float = 0.01) -> "AdaptiveCoverage":
        """Begins at the promised coverage.

        Raises:
            InvalidInput: If the target is not in (0, 1) or the rate not above 0.
        """
        if not rate > 0:
            raise InvalidInput("rate", rate, "be above 0")
        return cls(target=open_unit("target", target), rate=rate, level=target)

    def update(self, *, covered: bool) -> "AdaptiveCoverage":
        """Returns the state after one outcome, in the order in which predictions were made."""
        missed = not covered
        return AdaptiveCoverage(
            target=self.target,
            rate=self.rate,
            level=self.level + self.rate * (missed - (1 - self.target)),
            n_obs=self.n_obs + 1,
            n_missed=self.n_missed + missed,
        )

    def update_many(self, covered: ArrayLike) -> "AdaptiveCoverage":
        """Returns the state after a batch whose sets were all made at the level before it, shape (n,)."""
        flags = labels("covered", covered)
        n, missed = len(flags), int((~flags).sum())
        return AdaptiveCoverage(
            target=self.target,
            rate=self.rate,
            level=self.level + self.rate * (missed - n * (1 - self.target)),
            n_obs=self.n_obs + n,
            n_missed=self.n_missed + missed,
        )


@dataclass(frozen=True, kw_only=True)
class CoverageWatch(Result):
    """Coverage of each window and of all so far, against what was promised.

    Attributes:
        promised: Coverage promised.
        by_window: Coverage of each window with a Clopper-Pearson interval, for the eye.
        running: Coverage of all windows so far, with a confidence sequence that holds at every look.
        first_broken: Index of the first window at whose end the sequence excluded the promise from above (too little
            coverage); None while it stands.
        first_wasteful: The same from below (sets larger than needed).
    """

    promised: float
    by_window: tuple[Estimate, ...]
    running: Estimate
    first_broken: int | None
    first_wasteful: int | None

    def __str__(self) -> str:
        if self.first_broken is not None:
            verdict = f"broken since window {self.first_broken}"
        elif self.first_wasteful is not None:
            verdict = f"kept with larger sets than needed, known since window {self.first_wasteful}"
        else:
            verdict = "not refuted"
        return f"coverage promised {self.promised:g}: {verdict}; {self.running}"


def watch_coverage(
    covered: Sequence[int], n_obs: Sequence[int], *, promised: float, confidence_level: float = 0.95
) -> CoverageWatch:
    """Watches coverage window by window with a test that may be looked at after each.

    Args:
        covered: Rows of each window whose set held the truth.
        n_obs: Rows of each window whose truth is known.
        promised: Coverage promised, in (0, 1).
        confidence_level: Level of window intervals, and over all looks of the sequence, in (0, 1).

    Raises:
        InvalidInput: If lengths differ or counts are impossible.

    Example:
        >>> print(watch_coverage([90, 91, 60, 62], [100] * 4, promised=0.9))
        coverage promised 0.9: broken since window 2; coverage 0.7575 (95 % interval 0.6771 to 0.8273, n = 400)
    """
    open_unit("promised", promised)
    if len(covered) != len(n_obs):
        raise InvalidInput("covered and n_obs", (len(covered), len(n_obs)), "have the same length")
    windows, broken, wasteful = [], None, None
    hits = total = 0
    running = rate_sequence(successes=0, n_obs=0, confidence_level=confidence_level, name="coverage")
    for at, (held, rows) in enumerate(zip(covered, n_obs, strict=True)):
        windows.append(clopper_pearson(held, rows, confidence_level=confidence_level))
        hits, total = hits + held, total + rows
        running = rate_sequence(successes=hits, n_obs=total, confidence_level=confidence_level, name="coverage")
        if broken is None and running.upper < promised:
            broken = at
        if wasteful is None and running.lower > promised:
            wasteful = at
    return CoverageWatch(
        promised=promised,
        by_window=tuple(windows),
        running=running,
        first_broken=broken,
        first_wasteful=wasteful,
    )
