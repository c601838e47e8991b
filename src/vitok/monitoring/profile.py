"""What a model version saw when it was made: frozen bins and counts, so that the training rows are not needed again."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.clock import DAY, isoformat
from vitok.errors import InvalidInput, NotFound
from vitok.monitoring.distance import distance, spread
from vitok.monitoring.joint import MIN_DAY, RandomFeatures
from vitok.stats import Estimate, FrozenEdges, count_matrix
from vitok.stats.arrays import numbers
from vitok.stats.histograms import BinLayout

PROBABILITY = "probability"
OTHER = "other"
_KIND = "vitok.reference_profile/1"
# A day of fewer rows says more about sampling than about the day.


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceProfile:
    """Frozen distributions of every feature and of the calibrated probability, and how good the version was then.

    Attributes:
        names: The features, in the order in which the model takes them.
        edges: The bins of each feature, and last those of the probability.
        counts: Rows of the reference in each bin, one int64 array for each of `edges`.
        n: Rows of the reference.
        start: When the period of the reference begins, in microseconds.
        end: When it ends, in microseconds, not included.
        baseline: Metric name to an `Estimate` as its `to_dict` gives it, such as `average_precision`.
        ignored: Features in which no drift is looked for, such as calendar flags.
        ordinary: For each of `edges` how far single days of the reference lay from its other days, at most: effect
            and shift as in `ColumnDrift`. Weekdays differ, and that is no drift. Zeros where days are not known.
        slices: For each slice column its values, and for each of these the counts of all columns end to end. The
            last value is `"other"`: what was rare in the reference, what it never had, and nulls.
        joint: Random features of pairs of columns, to see joint drift; None where they were not asked for.

    Example:
        >>> rng = np.random.default_rng(7)
        >>> X = np.column_stack([rng.lognormal(3.0, 0.8, 2_000), rng.poisson(2.0, 2_000)])
        >>> p = rng.beta(1, 50, 2_000)
        >>> profile = ReferenceProfile.fit(["amount", "count_1d"], X, p, start=0, end=86_400_000_000)
        >>> print(profile)
        reference of 2,000 rows, 1970-01-01T00:00:00Z to 1970-01-02T00:00:00Z: 2 features and the probability
        >>> ReferenceProfile.from_dict(profile.to_dict()) == profile
        True
    """

    names: tuple[str, ...]
    edges: tuple[FrozenEdges, ...]
    counts: tuple[NDArray[np.int64], ...]
    n: int
    start: int
    end: int
    baseline: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    ordinary: tuple[tuple[float, float], ...] = ()
    slices: Mapping[str, Mapping[str, NDArray[np.int64]]] = field(default_factory=dict)
    joint: RandomFeatures | None = None

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names) or "" in self.names or PROBABILITY in self.names:
            raise InvalidInput("names", self.names, f"be names, each given once, none of them {PROBABILITY!r}")
        unknown = sorted(set(self.ignored) - set(self.names))
        if unknown:
            raise InvalidInput("ignored", unknown, "be features of the profile", f"It has: {', '.join(self.names)}")
        if not len(self.edges) == len(self.counts) == len(self.names) + 1:
            raise InvalidInput(
                "edges and counts",
                (len(self.edges), len(self.counts)),
                f"be {len(self.names) + 1}, the probability last",
            )
        if not self.ordinary:
            object.__setattr__(self, "ordinary", ((0.0, 0.0),) * len(self.edges))
        if len(self.ordinary) != len(self.edges):
            raise InvalidInput("ordinary", len(self.ordinary), f"be {len(self.edges)} pairs, or none")
        for name, frozen, counts in zip(self.columns, self.edges, self.counts, strict=True):
            if counts.shape != (frozen.n_bins,) or int(counts.sum()) != self.n or counts.min() < 0:
                raise InvalidInput(
                    f"counts[{name}]", counts.tolist(), f"be {frozen.n_bins} counts that add up to {self.n}"
                )
        whole = np.concatenate(self.counts)
        for column, values in self.slices.items():
            total = sum(values.values(), np.zeros_like(whole))
            if tuple(values)[-1:] != (OTHER,) or not np.array_equal(total, whole):
                raise InvalidInput(
                    f"slices[{column}]", tuple(values), f"end with {OTHER!r} and add up to the counts of the whole"
                )

    @classmethod
    def fit(
        cls,
        names: Sequence[str],
        X: ArrayLike,
        probability: ArrayLike,
        *,
        start: int,
        end: int,
        event_time: ArrayLike | None = None,
        baseline: Mapping[str, Mapping[str, Any]] | None = None,
        ignored: Sequence[str] = (),
        n_bins: int = 32,
        slices: Mapping[str, ArrayLike] | None = None,
        max_slices: int = 20,
        n_random_features: int = 0,
    ) -> "ReferenceProfile":
        """Freezes bins at the quantiles of reference rows and counts the rows in them.

        Take the latest rows before the version answers, after the longest window has filled: a `count_30d` that is
        still growing in the reference has drifted by the time it is full.

        Args:
            names: Names of the f features.
            X: Shape (n, f), n at least 1; NaN where a feature had no value.
            probability: Shape (n,), what the version says of these rows, calibrated.
            start: When the period of the rows begins, in microseconds.
            end: When it ends, in microseconds, not included.
            event_time: Shape (n,), times of the rows in microseconds: with them the profile learns how much days
                differ anyway. A whole week or several is best. None takes all days as alike.
            baseline: Metric name to an `Estimate` as its `to_dict` gives it, measured on held-out rows.
            ignored: Features in which no drift is looked for.
            n_bins: About how many bins share the finite values of a column, at least 2.
            slices: Slice column to its value in each row, shape (n,), such as `{"country": countries}`. Hours are
                then counted by these slices too.
            max_slices: How many values of a slice column are kept, the most frequent ones; the rest is `"other"`.
            n_random_features: How many random features see joint drift; 0 for none. Each looks at one pair of columns
                that are not ignored, so that `f * (f - 1) / 2` see every pair once; 256 cost about as much as counting
                50 columns.

        Returns:
            The profile.

        Raises:
            InvalidInput: If there are no rows, shapes do not fit, or a name is wrong.
        """
        matrix, p = numbers("X", X), numbers("probability", probability)
        if matrix.ndim != 2 or matrix.shape[1] != len(names):
            raise InvalidInput("X", matrix.shape, f"have the shape (n, {len(names)}), one column for each name")
        if p.shape != matrix.shape[:1]:
            raise InvalidInput("probability", p.shape, f"have the shape ({len(matrix)},), one for each row of X")
        if not len(matrix):
            raise InvalidInput("X", matrix.shape, "have at least one row", "Pass the latest rows before the version")
        if not start < end:
            raise InvalidInput("start, end", (start, end), "be a period: start before end, in microseconds")
        whole = np.column_stack([matrix, p])
        edges = tuple(FrozenEdges.from_values(column, n_bins=n_bins, guarded=True) for column in whole.T)
        counts = count_matrix(edges, whole)
        ordinary: tuple[tuple[float, float], ...] = ()
        if event_time is not None:
            times = np.asarray(event_time, dtype=np.int64)
            if times.shape != p.shape:
                raise InvalidInput("event_time", times.shape, f"have the shape {p.shape}, one for each row of X")
            ordinary = _ordinary(edges, counts, whole, times // DAY)
        if n_random_features < 0:
            raise InvalidInput("n_random_features", n_random_features, "be at least 0")
        joint = None
        if n_random_features:
            joint = RandomFeatures.fit(
                edges[:-1],
                counts[:-1],
                matrix,
                n_features=n_random_features,
                columns=[at for at, name in enumerate(names) if name not in ignored],
                day=None if event_time is None else np.asarray(event_time, dtype=np.int64) // DAY,
            )
        return cls(
            names=tuple(names),
            edges=edges,
            counts=counts,
            ordinary=ordinary,
            slices=_sliced(edges, whole, slices or {}, max_slices),
            joint=joint,
            n=len(matrix),
            start=int(start),
            end=int(end),
            baseline=dict(baseline or {}),
            ignored=tuple(ignored),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The features, and last the probability: the order of `edges` and `counts`."""
        return (*self.names, PROBABILITY)

    @cached_property
    def layout(self) -> BinLayout:
        """The bins of all columns end to end, ready for counting."""
        return BinLayout(self.edges)

    @cached_property
    def units(self) -> tuple[float, ...]:
        """For each of `edges` the unit of its shifts; see `vitok.monitoring.distance.spread`."""
        return tuple(spread(frozen, counts) for frozen, counts in zip(self.edges, self.counts, strict=True))

    @property
    def sliced(self) -> dict[str, tuple[str, ...]]:
        """Slice columns and their values, the last of which is `"other"`."""
        return {column: tuple(values) for column, values in self.slices.items()}

    @cached_property
    def digest(self) -> str:
        """The first 16 hex digits of SHA-256 over names and bins: counts add up only where these are the same."""
        bins = [[name, list(frozen.edges)] for name, frozen in zip(self.columns, self.edges, strict=True)]
        return hashlib.sha256(json.dumps(bins, separators=(",", ":")).encode()).hexdigest()[:16]

    def baseline_of(self, metric: str) -> Estimate | None:
        """Returns a metric of the baseline as an `Estimate`; None where it is missing or was undefined.

        A number that was given without an interval is taken as exact.
        """
        data = self.baseline.get(metric)
        if data is None or data.get("value") is None:
            return None
        lower, upper = data.get("lower", data["value"]), data.get("upper", data["value"])
        return Estimate(
            name=str(data.get("name", metric)),
            value=float(data["value"]),
            lower=-np.inf if lower is None else float(lower),
            upper=np.inf if upper is None else float(upper),
            n_obs=int(data.get("n_obs", 0)),
            confidence_level=float(data.get("confidence_level", 0.95)),
            definition=str(data.get("definition", "")),
        )

    def counts_of(self, column: str) -> NDArray[np.int64]:
        """Returns the reference counts of a feature or of `"probability"`.

        Raises:
            NotFound: If there is no such column.
        """
        if column not in self.columns:
            raise NotFound("column", column, self.columns)
        return self.counts[self.columns.index(column)]

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold; `from_dict` gives back the same profile to the last bit."""
        columns = [
            {"name": name, **frozen.to_dict(), "counts": counts.tolist(), "ordinary": list(ordinary)}
            for name, frozen, counts, ordinary in zip(self.columns, self.edges, self.counts, self.ordinary, strict=True)
        ]
        more: dict[str, Any] = {}
        if self.slices:
            more["slices"] = {
                column: {value: counts.tolist() for value, counts in values.items()}
                for column, values in self.slices.items()
            }
        if self.joint:
            more["joint"] = self.joint.to_dict()
        return {
            "kind": _KIND,
            "n": self.n,
            "start": self.start,
            "end": self.end,
            "baseline": {name: dict(estimate) for name, estimate in self.baseline.items()},
            "ignored": list(self.ignored),
            "columns": columns,
            **more,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ReferenceProfile":
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If it is something else, or its counts do not fit its bins.
        """
        if data.get("kind") != _KIND:
            raise InvalidInput("profile: kind", data.get("kind"), f"be {_KIND!r}", "Pass ReferenceProfile.to_dict's")
        missing = [key for key in ("n", "start", "end", "baseline", "ignored", "columns") if key not in data]
        if missing:
            raise InvalidInput("profile", missing, "have all its parts", "Pass what ReferenceProfile.to_dict returned")
        columns = data["columns"]
        return cls(
            names=tuple(column["name"] for column in columns[:-1]),
            edges=tuple(FrozenEdges.from_dict(column) for column in columns),
            counts=tuple(np.array(column["counts"], dtype=np.int64) for column in columns),
            n=int(data["n"]),
            start=int(data["start"]),
            end=int(data["end"]),
            baseline=data["baseline"],
            ignored=tuple(data["ignored"]),
            ordinary=tuple((float(column["ordinary"][0]), float(column["ordinary"][1])) for column in columns),
            slices={
                column: {value: np.array(counts, dtype=np.int64) for value, counts in values.items()}
                for column, values in data.get("slices", {}).items()
            },
            joint=RandomFeatures.from_dict(data["joint"]) if "joint" in data else None,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReferenceProfile) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.digest, self.n, self.start, self.end))

    def __str__(self) -> str:
        ignored = f", {len(self.ignored)} of them ignored" if self.ignored else ""
        return (
            f"reference of {self.n:,} rows, {isoformat(self.start)} to {isoformat(self.end)}:"
            f" {len(self.names)} features{ignored} and the probability"
            + (f", by {' and '.join(self.slices)}" if self.slices else "")
        )


def _ordinary(
    edges: Sequence[FrozenEdges],
    counts: Sequence[NDArray[np.int64]],
    whole: NDArray[np.float64],
    days: NDArray[np.int64],
) -> tuple[tuple[float, float], ...]:
    found = np.zeros((len(edges), 2))
    order = np.argsort(days, kind="stable")
    ordered = whole[order]
    _, starts = np.unique(days[order], return_index=True)
    for first, last in itertools.pairwise([*starts.tolist(), len(days)]):
        if last - first < MIN_DAY or len(days) - (last - first) < MIN_DAY:
            continue
        for at, day in enumerate(count_matrix(edges, ordered[first:last])):
            moved = distance(edges[at], counts[at] - day, day)
            found[at] = np.maximum(found[at], (moved.effect, moved.shift))
    return tuple((float(effect), float(shift)) for effect, shift in found)


def _sliced(
    edges: Sequence[FrozenEdges], whole: NDArray[np.float64], slices: Mapping[str, ArrayLike], most: int
) -> dict[str, dict[str, NDArray[np.int64]]]:
    layout = BinLayout(edges)
    found: dict[str, dict[str, NDArray[np.int64]]] = {}
    for column, given in slices.items():
        values = np.asarray(given, dtype=object)
        if values.shape != whole.shape[:1]:
            raise InvalidInput(f"slices[{column}]", values.shape, f"have the shape ({len(whole)},), one for each row")
        known = np.array(["" if value is None else str(value) for value in values], dtype=str)
        empty = np.array([value is None for value in values], dtype=bool)
        distinct, sizes = np.unique(known[~empty], return_counts=True)
        order = np.argsort(-sizes, kind="stable")[:most]
        kept = [str(distinct[at]) for at in order if distinct[at] != OTHER]
        rest = np.ones(len(whole), dtype=bool)
        found[column] = {}
        for value in kept:
            chosen = (known == value) & ~empty
            rest &= ~chosen
            found[column][value] = layout.count(whole[chosen])
        found[column][OTHER] = layout.count(whole[rest])
    return found
