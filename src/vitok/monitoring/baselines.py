"""What a window is held against: training, a healthy stretch of production, or the same season before."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.clock import DAY, isoformat
from vitok.decisions.schema import FEATURE_PREFIX
from vitok.errors import Conflict, InvalidInput
from vitok.monitoring.profile import PROBABILITY, ReferenceProfile
from vitok.monitoring.sketches import Sketches, WindowCounts
from vitok.stats.arrays import numbers

if TYPE_CHECKING:
    import polars as pl

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
            The baseline; None where this version decided nothing then. `of_rows` knows what others decided.
        """
        window = sketches.window(model_version, start - back, end - back)
        if window is None or not window.digest:
            return None
        name = {WEEK: "last week", YEAR: "last year"}.get(back, f"{back / DAY:g} days before")
        return cls.production(window, name=name)

    @classmethod
    def of_rows(
        cls,
        profile: ReferenceProfile,
        rows: "pl.DataFrame",
        start: int,
        end: int,
        *,
        name: str,
        probability: ArrayLike | None = None,
    ) -> "Baseline":
        """Counts rows of the decision log over this version's bins, whichever version decided them.

        Hourly counts of another version lie in other bins, and versions seldom live for a year; the log still has what
        they saw: `decisions.read(folder, since=start - YEAR, until=end - YEAR)`.

        Args:
            profile: The profile of the version whose window is to be held against them.
            rows: Rows of the log with the profile's features, `f_` before their names.
            start: When their period begins, in microseconds.
            end: When it ends, not included.
            name: What it is, such as `"last year"`.
            probability: Shape (n,), what this version says of them; None takes what was logged, which is what other
                versions said: then read nothing into a distance of the probability.

        Raises:
            InvalidInput: If a column is missing or is no number, there are no rows, or the shape does not fit.

        Example:
            >>> import polars as pl
            >>> profile = ReferenceProfile.fit(["x"], [[1.0], [2.0]], [0.1, 0.2], start=0, end=DAY)
            >>> before = pl.DataFrame({"f_x": [1.0, 1.5, None], "probability": [0.3, 0.1, 0.2]})
            >>> print(Baseline.of_rows(profile, before, 0, DAY, name="last year"))
            last year, 1970-01-01T00:00:00Z to 1970-01-02T00:00:00Z: 3 rows
        """
        names = [FEATURE_PREFIX + feature for feature in profile.names]
        if probability is None:
            names.append(PROBABILITY)
        missing = [column for column in names if column not in rows.columns]
        if missing or not rows.height:
            given = missing or rows.height
            raise InvalidInput("rows", given, "be rows of the log with every feature of the profile, at least one")
        columns = [numbers(column, rows[column].to_numpy()) for column in names]
        if probability is not None:
            columns.append(numbers("probability", probability))
            if columns[-1].shape != (rows.height,):
                raise InvalidInput("probability", columns[-1].shape, f"have the shape ({rows.height},)")
        return cls(
            name=name,
            start=start,
            end=end,
            n=rows.height,
            digest=profile.digest,
            counts=profile.layout.count(np.column_stack(columns)),
        )

    def __str__(self) -> str:
        return f"{self.name}, {isoformat(self.start)} to {isoformat(self.end)}: {self.n:,} rows"
