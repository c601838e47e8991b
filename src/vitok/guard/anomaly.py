"""How unlike the reference an input row is, judged by the profile that the model version brings along.

The surprise of a value is -ln of the share of the reference in its bin; in a bin that is open to one side, plus -ln of
the chance to lie so far out, by a Pareto tail (Lomax, 1954, with exponent 2) of the bin's mean excess. A row has two
scores: the sum over its features (many values a little odd) and the largest of them (one value very odd). Each is held
against rows that the profile has not seen, as in conformal prediction, so that the share of false alarms is bounded
whatever the distribution is.

About 0.4 us a row of 30 features in batches of ten, 1.8 us alone (bench/serving/guard_parts.py).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats import FrozenEdges

Floats = NDArray[np.float64]

_KIND = "vitok.anomaly/1"
_PROFILE_KIND = "vitok.reference_profile/1"
_KEPT = 1024

CANNOT_SEE = (
    "It looks at each feature by itself: a row whose values are each common, in a combination that never occurs, looks "
    "ordinary; so does a small change within a bin, which is what an adversarial example is. It knows nothing about "
    "features that the profile ignores, and a slow drift moves its share of alarms rather than any one row."
)


class Scores(NamedTuple):
    """The two scores of n rows, and which rows are flagged.

    Attributes:
        total: Shape (n,), the sum of the surprises.
        largest: Shape (n,), the largest of them.
        flagged: Shape (n,), True where either is above its threshold.
    """

    total: Floats
    largest: Floats
    flagged: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class FeatureSurprise:
    """One feature of an anomalous row.

    Attributes:
        name: The feature.
        value: What the row has there.
        bin: The bin of the profile that it falls into.
        share: Share of the reference in that bin.
        surprise: The feature's part in the score.
        reason: `"null"`, `"infinite"`, `"unseen"` (the reference has nothing in the bin), `"far"` (beyond what the
            reference reached) or `"rare"`.
    """

    name: str
    value: float
    bin: str
    share: float
    surprise: float
    reason: Literal["null", "infinite", "unseen", "far", "rare"]

    def __str__(self) -> str:
        return f"{self.name} = {self.value:.6g} ({self.reason}: {self.bin}, {self.share:.2%} of the reference)"


@dataclass(frozen=True, kw_only=True)
class Anomaly:
    """What the score says about one row.

    Attributes:
        flagged: Whether it is an anomaly at the stated rate of false alarms.
        total: The sum of the surprises.
        largest: The largest of them.
        p_value: Chance of such a row among ordinary ones, at most; 1 where it is nothing special.
        features: What contributed most, first the largest.
    """

    flagged: bool
    total: float
    largest: float
    p_value: float
    features: tuple[FeatureSurprise, ...]

    def __str__(self) -> str:
        head = f"{'anomaly' if self.flagged else 'ordinary'} (p {'<=' if self.p_value < 1 else '='} {self.p_value:.4g})"
        return "; ".join((head, *map(str, self.features)))


class _Reference:
    """A profile, laid out for the compiled loops."""

    def __init__(self, profile: Mapping[str, Any]) -> None:
        from vitok.guard.anomaly_kernels import score_rows

        if profile.get("kind") != _PROFILE_KIND:
            raise InvalidInput("profile: kind", profile.get("kind"), f"be {_PROFILE_KIND!r}")
        columns: Sequence[Mapping[str, Any]] = [item for item in profile["columns"] if item["name"] != "probability"]
        ignored = set(profile.get("ignored", ()))
        self.names = tuple(str(item["name"]) for item in columns)
        self.edges = tuple(FrozenEdges.from_dict(item) for item in columns)
        self.counts = tuple(np.array(item["counts"], dtype=np.int64) for item in columns)
        used = [at for at, name in enumerate(self.names) if name not in ignored]
        if not used:
            raise InvalidInput("profile", self.names, "have at least one feature that is not ignored")
        plan: list[tuple[int, int, int, int]] = []
        table: list[Floats] = []
        size = 0
        for at in used:
            frozen, counts = self.edges[at], self.counts[at]
            if counts.shape != (frozen.n_bins,):
                raise InvalidInput("profile: counts", counts.tolist(), f"be {frozen.n_bins} counts")
            n_edges = len(frozen.edges)
            padded = (1 << n_edges.bit_length()) - 1
            # Half an observation in every bin: what was never seen is rare, not impossible (Jeffreys).
            surprise = -np.log((counts + 0.5) / (counts.sum() + 0.5 * len(counts)))
            padding = np.full(padded - n_edges, np.inf)
            plan.append((at, n_edges, padded, size))
            table.append(np.concatenate((_tails(frozen, counts), frozen.edges, padding, surprise)))
            size += len(table[-1])
        self._score_rows = score_rows
        self.plan, self.table = np.array(plan, dtype=np.uintp), np.concatenate(table)

    def matrix(self, X: ArrayLike) -> Floats:
        matrix = np.ascontiguousarray(X)
        # By its letter, as comparing types takes as long as scoring a row.
        if matrix.dtype.char not in "fd":
            matrix = matrix.astype(np.float64)
        if matrix.ndim != 2 or matrix.shape[1] != len(self.names):
            raise InvalidInput("X", matrix.shape, f"have the shape (n, {len(self.names)})")
        return matrix

    def scored(self, matrix: Floats, thresholds: tuple[float, float]) -> tuple[Scores, int]:
        """Scores rows of the right shape; also says how many are flagged."""
        scores, flagged = np.empty((2, len(matrix))), np.empty(len(matrix), dtype=np.bool_)
        n = self._score_rows(matrix, self.plan, self.table, thresholds, scores, flagged)
        return Scores(scores[0], scores[1], flagged), n

    def each(self, row: Floats) -> Floats:
        """Returns the surprise of each feature of a row, 0 for those that are ignored."""
        from vitok.guard.anomaly_kernels import surprise_of

        found = np.zeros(len(self.names))
        for line in self.plan:
            found[line[0]] = surprise_of(float(row[line[0]]), *line[1:], self.table)
        return found


class AnomalyScorer:
    """Scores input rows against a reference profile; see the module for how.

    What it cannot see is in `CANNOT_SEE`.

    Args:
        profile: The profile as JSON, such as `package.json("profile.json")`: names, bins and counts.
        calibration: What `fit` learned from rows that the profile had not seen, as `to_dict` gives it.

    Raises:
        InvalidInput: If either is something else.

    Example:
        >>> rng = np.random.default_rng(7)
        >>> X = np.column_stack([rng.lognormal(3, 1, 6_000), rng.poisson(2.0, 6_000)])
        >>> columns = []
        >>> for name, column in zip(("amount", "count_1d"), X[:3_000].T):
        ...     edges = FrozenEdges.from_values(column)
        ...     columns.append({"name": name, **edges.to_dict(), "counts": edges.count(column).tolist()})
        >>> profile = {"kind": "vitok.reference_profile/1", "n": 3_000, "ignored": [], "columns": columns}
        >>> scorer = AnomalyScorer.fit(profile, X[3_000:], false_alarm_rate=0.01)
        >>> scorer.score([[20.0, 2.0], [1e9, 2.0], [20.0, -1.0]]).flagged.tolist()
        [False, True, True]
        >>> print(scorer.explain([20.0, -1.0], top=1))
        anomaly (p <= 0.0006664); count_1d = -1 (unseen: x < 0, 0.00% of the reference)
    """

    def __init__(self, profile: Mapping[str, Any], calibration: Mapping[str, Any]) -> None:
        self._reference = _Reference(profile)
        self.names = self._reference.names
        if calibration.get("kind") != _KIND:
            raise InvalidInput("calibration: kind", calibration.get("kind"), f"be {_KIND!r}", "Pass to_dict's")
        if list(calibration["names"]) != list(self.names):
            raise InvalidInput("calibration: names", calibration["names"], "be the features of the profile")
        self.false_alarm_rate = float(calibration["false_alarm_rate"])
        self.n = int(calibration["n"])
        self._tails_seen = tuple(np.array(calibration[name], dtype=np.float64) for name in ("total", "largest"))
        self.thresholds = (float(calibration["thresholds"][0]), float(calibration["thresholds"][1]))

    @classmethod
    def fit(cls, profile: Mapping[str, Any], X: ArrayLike, *, false_alarm_rate: float = 0.001) -> "AnomalyScorer":
        """Sets the thresholds by rows that the profile has not seen.

        Args:
            profile: The profile as JSON.
            X: Shape (n, f), rows of ordinary traffic in the order of the profile's features, not those that the
                profile was made of; n at least 2 / false_alarm_rate.
            false_alarm_rate: Share of ordinary rows that may be flagged, in (0, 1). Each of the two scores gets half.

        Returns:
            The scorer. On rows that are exchangeable with X at most this share is flagged, on average over X
            (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005).

        Raises:
            InvalidInput: If there are too few rows for the rate, or the shape does not fit.
        """
        if not 0 < false_alarm_rate < 1:
            raise InvalidInput("false_alarm_rate", false_alarm_rate, "be strictly between 0 and 1")
        reference = _Reference(profile)
        matrix = reference.matrix(X)
        n = len(matrix)
        rank = math.ceil((n + 1) * (1 - false_alarm_rate / 2))
        if rank > n:
            fix = f"Give at least {math.ceil(2 / false_alarm_rate)} rows, or take a higher rate"
            raise InvalidInput("X", matrix.shape, "have more rows for this false_alarm_rate", fix)
        scores, _ = reference.scored(matrix, (math.inf, math.inf))
        total, largest = np.sort(scores.total), np.sort(scores.largest)
        learned = {
            "kind": _KIND,
            "names": reference.names,
            "false_alarm_rate": false_alarm_rate,
            "n": n,
            "thresholds": (total[rank - 1], largest[rank - 1]),
            "total": total[-_KEPT:],
            "largest": largest[-_KEPT:],
        }
        return cls(profile, learned)

    def score(self, X: ArrayLike) -> Scores:
        """Scores rows.

        Args:
            X: Shape (n, f), float32 or float64, any n; NaN is null.

        Raises:
            InvalidInput: If the shape does not fit.
        """
        return self._reference.scored(self._reference.matrix(X), self.thresholds)[0]

    def odd(self, X: ArrayLike) -> list[int]:
        """Returns the places of the rows that are flagged; the quick way to ask, where nearly always none is.

        Args:
            X: As for `score`.

        Raises:
            InvalidInput: If the shape does not fit.
        """
        scores, n = self._reference.scored(self._reference.matrix(X), self.thresholds)
        return np.flatnonzero(scores.flagged).tolist() if n else []

    def explain(self, x: ArrayLike, *, top: int = 3) -> Anomaly:
        """Says of one row how odd it is, and which features make it so; not for the hot path.

        Args:
            x: Shape (f,).
            top: How many features to name.
        """
        row = np.asarray(x, dtype=np.float64)
        matrix = self._reference.matrix(row.reshape(1, -1))
        each = self._reference.each(matrix[0])
        scores = self.score(matrix)
        total, largest = float(scores.total[0]), float(scores.largest[0])
        p_value = min(1.0, 2 * min(map(self._p_value, self._tails_seen, (total, largest))))
        order = np.argsort(-each, kind="stable")[:top]
        features = tuple(self._described(int(at), float(row[at]), float(each[at])) for at in order if each[at] > 0)
        return Anomaly(
            flagged=bool(scores.flagged[0]), total=total, largest=largest, p_value=p_value, features=features
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns what was learned besides the profile, fit for JSON; it goes into the package beside the profile."""
        return {
            "kind": _KIND,
            "names": list(self.names),
            "false_alarm_rate": self.false_alarm_rate,
            "n": self.n,
            "thresholds": list(self.thresholds),
            "total": self._tails_seen[0].tolist(),
            "largest": self._tails_seen[1].tolist(),
        }

    def __repr__(self) -> str:
        rate = f"{self.false_alarm_rate:.3g} false alarms of {self.n:,} rows"
        return f"AnomalyScorer({len(self._reference.plan)} of {len(self.names)} features, {rate})"

    def _p_value(self, seen: Floats, score: float) -> float:
        above = len(seen) - int(np.searchsorted(seen, score, side="left"))
        # Below the scores that were kept nothing is known but that there are as many above.
        return 1.0 if above == len(seen) and self.n > len(seen) else (1 + above) / (self.n + 1)

    def _described(self, at: int, value: float, surprise: float) -> FeatureSurprise:
        frozen, counts = self._reference.edges[at], self._reference.counts[at]
        place = int(np.argmax(frozen.count([value])))
        share = float(counts[place] / max(1, counts.sum()))
        # More than one row of the reference would reach by its own tail.
        far = surprise > math.log(max(1, int(counts.sum())))
        reason: Literal["null", "infinite", "unseen", "far", "rare"]
        if place == 0:
            reason = "null"
        elif place in (1, frozen.n_bins - 1):
            reason = "infinite"
        elif counts[place] == 0:
            reason = "unseen"
        else:
            reason = "far" if far else "rare"
        return FeatureSurprise(
            name=self.names[at],
            value=value,
            bin=frozen.labels()[place],
            share=share,
            surprise=surprise,
            reason=reason,
        )


def _tails(frozen: FrozenEdges, counts: NDArray[np.int64]) -> tuple[float, float]:
    """Returns the mean excess of the reference in the lowest and in the highest cell."""
    if not frozen.edges:
        return 1.0, 1.0
    low = frozen.edges[0] - frozen.centers[2] if counts[2] else 0.0
    high = frozen.centers[-2] - frozen.edges[-1] if counts[-2] else 0.0
    return tuple(excess if 0 < excess < math.inf else frozen.scale for excess in (low, high))  # type: ignore[return-value]
