"""What a window is held against: training, a healthy stretch of production, or the same season before."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitok.clock import DAY, isoformat
from vitok.errors import Conflict
from vitok.monitoring.profile import ReferenceProfile
from vitok.monitoring.sketches import Sketches, WindowCounts

WEEK = 7 * DAY
# 52 weeks and not 365 days: a Sunday is held against a Sunday.
YEAR = 52 * WEEK


@dataclass(frozen=True, kw_only=True, eq=False)
class Baseline:
    """Counts over a profile's bins that stand for "as it should be".

    Attributes:
        name: What it is, such as `"training"` or `"last week"`.
        start: When its period begins, in microseconds.
        end: When it ends, not included.
        n: Rows.
        digest: `ReferenceProfile.digest` of the bins.
        counts: Counts of all columns end to end, int64.

    Example:
        >>> profile = ReferenceProfile.fit(["x"], [[1.0], [2.0]], [0.1, 0.2], start=0, end=DAY)
        >>> print(Baseline.training(profile))
        training, 1970-01-01T00:00:00Z to 1970-01-02T00:00:00Z: 2 rows
    """

    name: str
    start: int
    end: int
    n: int
    digest: str
    counts: NDArray[np.int64]

    @classmethod
    def training(cls, profile: ReferenceProfile) -> "Baseline":
        """Returns what the version saw when it was made."""
        return cls(
            name="training",
            start=profile.start,
            end=profile.end,
            n=profile.n,
            digest=profile.digest,
            counts=np.concatenate(profile.counts),
        )

    @classmethod
    def production(cls, window: WindowCounts, *, name: str = "production") -> "Baseline":
        """Returns a stretch of production that was found healthy.

        Raises:
            Conflict: If the window has no bins.
        """
        if not window.digest:
            raise Conflict(f"{window.model_version} was counted without a profile, and cannot be a baseline")
        return cls(
            name=name,
            start=window.start,
            end=window.end,
            n=window.n,
            digest=window.digest,
            counts=np.asarray(window.counts),
        )

    @classmethod
    def season(
        cls, sketches: Sketches, model_version: str, start: int, end: int, *, back: int = WEEK
    ) -> "Baseline | None":
        """Returns the same hours before: by default those of last week, `back=YEAR` those of last year.

        Args:
            sketches: Hourly counts.
            model_version: Which version; one that did not yet decide then has no such baseline.
            start: When the window begins that is to be held against it, a full hour in microseconds.
            end: When it ends.
            back: How far back, whole hours in microseconds.

        Returns:
            The baseline; None where there are no decisions then.
        """
        window = sketches.window(model_version, start - back, end - back)
        if window is None or not window.digest:
            return None
        name = {WEEK: "last week", YEAR: "last year"}.get(back, f"{back / DAY:g} days before")
        return cls.production(window, name=name)

    def __str__(self) -> str:
        return f"{self.name}, {isoformat(self.start)} to {isoformat(self.end)}: {self.n:,} rows"
