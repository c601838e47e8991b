"""Expected metrics from counts alone: how many rows fell into each bin of the score, and what labelled rows say of it.

The hourly counts of the score are kept anyway, so that a year can be estimated without a single raw row. What the
bins lose is the order of the rows within one: it is taken to be as it was among the labelled rows, and
`ExpectedMetric.resolution` says how far that can be wrong.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats.arrays import Flags, Floats, labels_and_probabilities, positive_integer, vector
from vitok.stats.calibration import isotonic_means
from vitok.stats.histograms import FrozenEdges
from vitok.stats.performance_estimation import (
    BY_FLAG,
    DEFINITIONS,
    ExpectedPerformance,
    expected_by_flag,
    expected_metric,
)
from vitok.stats.ranking import roc_auc
from vitok.stats.results import Result

_LOG_FLOOR = 1e-15


def score_edges(probability: ArrayLike, *, n_bins: int = 32, thresholds: tuple[float, ...] = ()) -> FrozenEdges:
    """Freezes bins for a probability that are fine where the positives are.

    Half of the cuts share the rows equally, half share the expected positives; with rare positives these two lie far
    apart, and bins of equal mass alone would put most positives into one.

    Args:
        probability: Shape (n,), in [0, 1], n at least 1.
        n_bins: About how many cells, at least 2.
        thresholds: Probabilities at which a decision changes, in (0, 1): each becomes a cut, so that what depends on
            them loses nothing.

    Returns:
        The bins.

    Raises:
        InvalidInput: If there are no rows, or a value is out of range.

    Example:
        >>> p = np.linspace(0.001, 0.999, 999) ** 4
        >>> 0.2 in score_edges(p, n_bins=8, thresholds=(0.2,)).edges
        True
    """
    p = vector("probability", probability)
    if positive_integer("n_bins", n_bins) < 2:
        raise InvalidInput("n_bins", n_bins, "be at least 2")
    if len(p) == 0 or ((p < 0) | (p > 1)).any():
        raise InvalidInput("probability", p[:5].tolist(), "be at least one value, all in [0, 1]")
    if any(not 0 < cut < 1 for cut in thresholds):
        raise InvalidInput("thresholds", thresholds, "lie strictly between 0 and 1")
    ordered = np.sort(p)
    half = max(2, n_bins // 2)
    shares = np.arange(1, half) / half
    by_row = ordered[(shares * len(p)).astype(np.intp)]
    mass = np.cumsum(ordered)
    by_positive = ordered[np.minimum(np.searchsorted(mass, shares * mass[-1]), len(p) - 1)]
    cuts = np.unique(np.concatenate((by_row, by_positive, np.array(thresholds, dtype=np.float64))))
    plain = FrozenEdges.from_values(p, n_bins=n_bins)
    cell = np.searchsorted(cuts, ordered, side="right")
    n = np.bincount(cell, minlength=len(cuts) + 1)
    means = np.bincount(cell, weights=ordered, minlength=len(cuts) + 1) / np.maximum(n, 1)
    centers = np.where(n > 0, means, np.concatenate((cuts[:1], cuts)))
    return FrozenEdges(
        edges=tuple(cuts.tolist()), centers=(math.nan, math.nan, *centers.tolist(), math.nan), scale=plain.scale
    )


@dataclass(frozen=True, kw_only=True)
class ScoreBins(Result):
    """What labelled rows say of each cell of a score's bins.

    Attributes:
        edges: Ascending cuts of the score; k cuts make k + 1 cells.
        rate: Calibrated frequency of positives in each cell, not descending.
        variance: Variance of that frequency, from the labelled rows in the cell.
        within_auc: Area under the ROC curve among the labelled rows of the cell, 0.5 where it has one class.
        within_precision: Where the precision at the cell's positives lay between random order (0) and perfect order
            (1) within the cell.
        brier_if_positive: Mean squared loss of the cell's positives; `brier_if_negative`, `log_if_positive` and
            `log_if_negative` likewise.
        brier_if_negative: See above.
        log_if_positive: See above.
        log_if_negative: See above.
        n_obs: Labelled rows.
    """

    edges: tuple[float, ...]
    rate: tuple[float, ...]
    variance: tuple[float, ...]
    within_auc: tuple[float, ...]
    within_precision: tuple[float, ...]
    brier_if_positive: tuple[float, ...]
    brier_if_negative: tuple[float, ...]
    log_if_positive: tuple[float, ...]
    log_if_negative: tuple[float, ...]
    n_obs: int

    @classmethod
    def fit(cls, edges: FrozenEdges, probability: ArrayLike, y: ArrayLike) -> "ScoreBins":
        """Learns the cells from labelled rows.

        Args:
            edges: The bins that the counts are kept in.
            probability: The score that is counted, shape (n,), in [0, 1], n at least 1.
            y: Labels of shape (n,), bool or 0 and 1, both present.

        Raises:
            InvalidInput: If there are no rows or one class only, shapes differ, or a value is out of range.

        Example:
            >>> p = np.tile([0.1, 0.4, 0.8, 0.9], 50)
            >>> y = np.tile([0, 0, 1, 1, 1, 1, 0, 0], 25)
            >>> ScoreBins.fit(FrozenEdges.from_values(p, n_bins=2), p, y).n_obs
            200
        """
        flags, p = labels_and_probabilities(y, probability)
        if not flags.any() or flags.all():
            raise InvalidInput("y", f"{len(flags)} rows of at most one class", "hold both classes")
        cuts = np.array(edges.edges, dtype=np.float64)
        cell = np.searchsorted(cuts, p, side="right")
        k = len(cuts) + 1
        n, positives = np.bincount(cell, minlength=k), np.bincount(cell, weights=flags, minlength=k)
        seen = n > 0
        places = np.arange(k, dtype=np.float64)
        _, pooled, _ = isotonic_means(places[seen], positives[seen] / n[seen], n[seen].astype(np.float64))
        rate = np.interp(places, places[seen], pooled)
        smooth = (positives + 1) / (n + 2)
        losses = {
            "brier": ((1 - p) ** 2, p**2),
            "log": (-np.log(np.maximum(p, _LOG_FLOOR)), -np.log(np.maximum(1 - p, _LOG_FLOOR))),
        }
        found: dict[str, tuple[float, ...]] = {}
        for name, (if_1, if_0) in losses.items():
            found[f"{name}_if_positive"] = _by_cell(if_1, flags, cell, k)
            found[f"{name}_if_negative"] = _by_cell(if_0, ~flags, cell, k)
        return cls(
            edges=edges.edges,
            rate=tuple(rate.tolist()),
            variance=tuple((smooth * (1 - smooth) / np.maximum(n, 1)).tolist()),
            within_auc=tuple(_within_auc(p, flags, cell, k)),
            within_precision=tuple(_within_precision(p, flags, cell, k)),
            n_obs=len(p),
            **found,
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ScoreBins":
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a part is missing or parts differ in length.
        """
        names = [field.name for field in dataclasses.fields(cls) if field.name != "n_obs"]
        missing = [name for name in (*names, "n_obs") if name not in data]
        if missing:
            raise InvalidInput("bins", missing, "have all its parts", "Pass what ScoreBins.to_dict returned")
        parts = {name: tuple(float(value) for value in data[name]) for name in names}
        if any(len(part) != len(parts["edges"]) + (name != "edges") for name, part in parts.items()):
            raise InvalidInput("bins", {name: len(part) for name, part in parts.items()}, "have k cuts and k + 1 cells")
        return cls(**parts, n_obs=int(data["n_obs"]))

    def expected(
        self, counts: ArrayLike, *, threshold: float | None = None, confidence_level: float = 0.95
    ) -> ExpectedPerformance:
        """Estimates the metrics of rows of which only the counts in the bins are known.

        Args:
            counts: As `FrozenEdges.count` gives them, shape (k + 4,), or of the k + 1 cells alone; of any window, as
                counts add up. Null and infinite scores are left out.
            threshold: Probability from which rows were flagged; must be one of the cuts. None leaves out what rests
                on it.
            confidence_level: Level, in (0, 1).

        Returns:
            The metrics; intervals as in `expected_performance`. `resolution` bounds what the bins can have moved:
            for ranking metrics over all orders within the cells, for losses over all scores within them.

        Raises:
            InvalidInput: If the counts do not fit, or the threshold is not a cut.

        Example:
            >>> p = np.tile([0.1, 0.4, 0.8, 0.9], 50)
            >>> y = np.tile([0, 0, 1, 1, 1, 1, 0, 0], 25)
            >>> edges = FrozenEdges.from_values(p, n_bins=4)
            >>> found = ScoreBins.fit(edges, p, y).expected(edges.count(p))
            >>> found["positive_rate"].value, found["roc_auc"].value
            (0.5, 0.5)
        """
        given = vector("counts", counts, finite=True)
        k = len(self.rate)
        if len(given) == k + 3:
            given = given[2:-1]
        if len(given) != k or (given < 0).any():
            raise InvalidInput("counts", given.tolist(), f"be {k + 3} counts of all bins, or {k} of the cells")
        flagged = None
        if threshold is not None:
            if threshold not in self.edges:
                fix = "Freeze the bins with the threshold among their cuts: score_edges(..., thresholds=...)"
                raise InvalidInput("threshold", threshold, "be one of the cuts", fix)
            flagged = np.arange(k) > self.edges.index(threshold)
        n = given
        p = np.array(self.rate)
        t = n * p
        total = float(n.sum())
        found = self._metrics(n, t, p, flagged) if total > 0 else {}
        names: tuple[str, ...] = ("positive_rate", "roc_auc", "average_precision", "brier", "log_loss")
        names += BY_FLAG if flagged is not None else ()
        found = found or {name: (math.nan, np.zeros(k), 0.0) for name in names}
        estimates = []
        for name, (value, gradient, resolution) in found.items():
            spread = (0.0, 0.0)
            if not math.isnan(value):
                spread = (
                    float((t * (1 - p)) @ gradient**2),
                    float((n * gradient) ** 2 @ np.array(self.variance)),
                )
                if name == "average_precision":
                    spread = spread[0] + _pairs(n, t), spread[1]
            estimates.append(
                expected_metric(
                    name,
                    value,
                    spread,
                    int(total),
                    confidence_level,
                    f"{DEFINITIONS[name]}; from counts in {k} cells",
                    "no rows" if total == 0 else "no rows of the kind that it divides by are expected",
                    resolution,
                )
            )
        return ExpectedPerformance(estimates=tuple(estimates), n_obs=int(total), expected_positives=float(t.sum()))

    def _metrics(
        self, n: Floats, t: Floats, p: Floats, flagged: Flags | None
    ) -> dict[str, tuple[float, Floats, float]]:
        total = float(n.sum())
        found = {
            "positive_rate": (float(t.sum()) / total, np.full(len(n), 1 / total), 0.0),
            "roc_auc": self._roc_auc(n, t),
            "average_precision": self._average_precision(n, t),
        }
        low = np.clip(np.concatenate(([0.0], self.edges)), 0.0, 1.0)
        high = np.clip(np.concatenate((self.edges, [1.0])), 0.0, 1.0)
        for name, short in (("brier", "brier"), ("log_loss", "log")):
            if_1, if_0 = (np.array(getattr(self, f"{short}_if_{kind}")) for kind in ("positive", "negative"))
            value = float(t @ if_1 + (n - t) @ if_0) / total
            ends = [(1 - q) ** 2 for q in (low, high)], [q**2 for q in (low, high)]
            if short == "log":
                ends = (
                    [-np.log(np.maximum(q, _LOG_FLOOR)) for q in (low, high)],
                    [-np.log(np.maximum(1 - q, _LOG_FLOOR)) for q in (low, high)],
                )
            # A rigorous bound: every row of a cell at the end of the cell that is farthest from the mean assumed.
            off = sum(
                mass @ np.maximum(np.abs(side[0] - mean), np.abs(side[1] - mean))
                for mass, side, mean in ((t, ends[0], if_1), (n - t, ends[1], if_0))
            )
            found[name] = (value, (if_1 - if_0) / total, float(off) / total)
        if flagged is not None:
            found |= {name: (*each, 0.0) for name, each in expected_by_flag(flagged, p, n).items()}
        return found

    def _roc_auc(self, n: Floats, t: Floats) -> tuple[float, Floats, float]:
        f = n - t
        positives, negatives = float(t.sum()), float(f.sum())
        if not positives * negatives > 0:
            return math.nan, np.zeros(len(n)), 0.0
        auc = np.array(self.within_auc)
        pairs = positives * negatives
        below = np.cumsum(f) - f + f * auc
        above = positives - np.cumsum(t) + t * auc
        value = float(t @ below) / pairs
        slope = (below - above - value * (negatives - positives)) / pairs
        return value, slope, float((t * f) @ np.maximum(auc, 1 - auc)) / pairs

    def _average_precision(self, n: Floats, t: Floats) -> tuple[float, Floats, float]:
        positives = float(t.sum())
        if not positives > 0:
            return math.nan, np.zeros(len(n)), 0.0
        above, true_above = float(n.sum()) - np.cumsum(n), positives - np.cumsum(t)
        random, perfect, worst = _precision_orders(above, true_above, n, t)
        lam = np.array(self.within_precision)
        span = np.where(lam >= 0, perfect - random, random - worst)
        precision = random + lam * span
        value = float(t @ precision) / positives
        gain = np.cumsum(np.divide(t, above + n, out=np.zeros_like(t), where=n > 0))
        rate, (inverse, _) = t / np.maximum(n, 1e-300), _inverse_places(above, n)
        slope = (precision + gain + (1 - 2 * rate) * inverse / np.maximum(n, 1e-300) - value) / positives
        off = float(t @ np.maximum(perfect - precision, precision - worst)) / positives
        return min(value, 1.0), slope, off


def _by_cell(loss: Floats, rows: Flags, cell: NDArray[np.intp], k: int) -> tuple[float, ...]:
    n = np.bincount(cell[rows], minlength=k)
    means = np.bincount(cell[rows], weights=loss[rows], minlength=k) / np.maximum(n, 1)
    # A cell without rows of the class takes what its neighbours say.
    places = np.arange(k)
    return tuple(np.interp(places, places[n > 0], means[n > 0]).tolist())


def _within_auc(p: Floats, flags: Flags, cell: NDArray[np.intp], k: int) -> list[float]:
    found = []
    order = np.argsort(cell, kind="stable")
    bounds = np.searchsorted(cell[order], np.arange(k + 1))
    for first, last in itertools.pairwise(bounds.tolist()):
        rows = order[first:last]
        value = roc_auc(flags[rows], p[rows]).value if len(rows) else math.nan
        found.append(0.5 if math.isnan(value) else value)
    return found


def _within_precision(p: Floats, flags: Flags, cell: NDArray[np.intp], k: int) -> list[float]:
    distinct, group = np.unique(p, return_inverse=True)
    n_group = np.bincount(group, minlength=len(distinct))
    t_group = np.bincount(group, weights=flags, minlength=len(distinct))
    precision = (np.cumsum(t_group[::-1]) / np.cumsum(n_group[::-1]))[::-1]
    n = np.bincount(cell, minlength=k).astype(np.float64)
    t = np.bincount(cell, weights=flags, minlength=k).astype(np.float64)
    seen = np.bincount(cell, weights=flags * precision[group], minlength=k) / np.maximum(t, 1)
    random, perfect, worst = _precision_orders(n.sum() - np.cumsum(n), t.sum() - np.cumsum(t), n, t)
    span = np.where(seen >= random, perfect - random, random - worst)
    lam = np.divide(seen - random, span, out=np.zeros(k), where=(span > 1e-12) & (t > 0))
    return np.clip(lam, -1.0, 1.0).tolist()


def _inverse_places(above: Floats, n: Floats) -> tuple[Floats, Floats]:
    """Returns the sums of 1 / i and of 1 / i^2 over the places of a cell's rows, as integrals."""
    first, last = above + 0.5, above + n + 0.5
    return np.log(last / first), 1 / first - 1 / last


def _pairs(n: Floats, t: Floats) -> float:
    """Returns what the labels of single rows and of pairs of rows add to the variance of average precision.

    As `ExpectedRanking.average_precision_of_pairs`, rows of a cell one after another, and besides how much the weights
    of a cell's rows differ.
    """
    rate = np.divide(t, n, out=np.zeros_like(t), where=n > 0)
    v = rate * (1 - rate)
    above = float(n.sum()) - np.cumsum(n)
    noise_above = float((n * v).sum()) - np.cumsum(n * v)
    inverse, squared = _inverse_places(above, n)
    behind = np.maximum(inverse - (above + 1) * squared, 0.0)
    unequal = (1 - 2 * rate) ** 2 * np.maximum(squared - inverse**2 / np.maximum(n, 1.0), 0.0)
    return float(v @ (noise_above * squared + v * behind + unequal)) / float(t.sum()) ** 2


def _precision_orders(above: Floats, true_above: Floats, n: Floats, t: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean precision at a cell's positives in random order, positives first, and positives last.

    Integrals over the place within the cell, of which the sum over rows differs by less than one row.
    """

    def run(first: Floats, true_first: Floats, step: Floats, true_step: Floats) -> Floats:
        share = np.divide(true_step, step, out=np.zeros_like(step), where=step > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            curved = (true_first - share * first) / step * np.log1p(step / first)
        return share + np.where((first > 0) & (step > 0), curved, 0.0)

    return (
        run(above, true_above, n, t),
        run(above, true_above, t, t),
        run(above + n - t, true_above, t, t),
    )
