"""How far the scores of two forms of one model lie apart: the difference itself, and the decisions that it turns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vitok.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Decisions that came out the other way.

    Attributes:
        threshold: Scores of at least this much are decided for; None where the class with the highest score is taken.
        count: How many rows were decided otherwise.
        share: Their share of all rows.
    """

    threshold: float | None
    count: int
    share: float

    def __str__(self) -> str:
        where = "for the likeliest class" if self.threshold is None else f"at {self.threshold:g}"
        return f"{self.count:,} decisions flipped {where} ({self.share:.3%})"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two scores of the same rows, side by side.

    Attributes:
        n_rows: How many rows were scored both ways.
        max_difference: Largest absolute difference; infinite where one of the two is NaN or another infinity.
        mean_difference: Mean absolute difference.
        equal_share: Share of rows whose scores are equal in all 64 bits; two NaNs are equal.
        flips: Decisions that came out the other way, for each threshold.
    """

    n_rows: int
    max_difference: float
    mean_difference: float
    equal_share: float
    flips: tuple[Flips, ...]

    @property
    def exact(self) -> bool:
        """Whether all scores are equal."""
        return self.equal_share == 1.0

    @property
    def flip_share(self) -> float:
        """The largest share of flipped decisions; 0 where no threshold was given."""
        return max((flips.share for flips in self.flips), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold; an infinite difference is None."""
        finite = np.isfinite(self.max_difference)
        return {
            "rows": self.n_rows,
            "max_difference": self.max_difference if finite else None,
            "mean_difference": self.mean_difference if finite else None,
            "equal_share": self.equal_share,
            "flips": [{"threshold": f.threshold, "count": f.count, "share": f.share} for f in self.flips],
        }

    def __str__(self) -> str:
        if self.exact:
            return f"equal in every bit on {self.n_rows:,} rows"
        parts = [
            f"differ by at most {self.max_difference:.3g} (mean {self.mean_difference:.3g}) on {self.n_rows:,} rows",
            f"{self.equal_share:.1%} equal",
            *map(str, self.flips),
        ]
        return ", ".join(parts)


def compare(reference: ArrayLike, other: ArrayLike, *, thresholds: Sequence[float] = (0.5,)) -> Comparison:
    """Compares two scores of the same rows.

    Args:
        reference: Shape (n,), or (n, classes).
        other: Of the same shape.
        thresholds: Where decisions are made: `score >= threshold`. With several classes the likeliest one is compared
            instead, if any threshold is given.

    Raises:
        InvalidInput: If shapes differ, or there is no row.

    Example:
        >>> print(compare([0.2, 0.4999, 0.9], [0.2, 0.5001, 0.9]))
        differ by at most 0.0002 (mean 6.67e-05) on 3 rows, 66.7% equal, 1 decisions flipped at 0.5 (33.333%)
    """
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if a.shape != b.shape or a.ndim not in (1, 2):
        raise InvalidInput("scores", (a.shape, b.shape), "have the same shape, (n,) or (n, classes)")
    if len(a) == 0:
        raise InvalidInput("scores", a.shape, "hold at least one row", "Compare on data as they will be served")
    alike = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        gap = np.where(alike, 0.0, np.abs(a - b))
    gap = np.where(np.isnan(gap), np.inf, gap)
    return Comparison(
        n_rows=len(a),
        max_difference=float(gap.max()),
        mean_difference=float(gap.mean()),
        equal_share=float(alike.reshape(len(a), -1).all(axis=1).mean()),
        flips=tuple(_flips(a, b, thresholds)),
    )


def _flips(a: np.ndarray, b: np.ndarray, thresholds: Sequence[float]) -> list[Flips]:
    if a.ndim == 2:
        turned: Mapping[float | None, np.ndarray] = {None: a.argmax(axis=1) != b.argmax(axis=1)} if thresholds else {}
    else:
        turned = {threshold: (a >= threshold) != (b >= threshold) for threshold in thresholds}
    return [Flips(threshold=at, count=int(mask.sum()), share=float(mask.mean())) for at, mask in turned.items()]
