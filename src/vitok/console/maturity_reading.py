"""How late outcomes are: the share of labels that has arrived by each age, by kind, now against before."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING

from vitok import decisions
from vitok.clock import DAY, HOUR
from vitok.console import curves, stores
from vitok.console.geometry import Chart
from vitok.console.labelled_reading import sizes
from vitok.console.newest import SAMPLED, one_in, taken_rows
from vitok.console.wording import length, share
from vitok.decisions.segments import segments

if TYPE_CHECKING:
    import polars as pl

PERIOD = 56 * DAY
_POINTS = 36
_TOLD = (HOUR, 6 * HOUR, DAY, 2 * DAY, 3 * DAY, 7 * DAY, 14 * DAY, 30 * DAY, 60 * DAY, 90 * DAY)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Age:
    """How far labels are at an age.

    Attributes:
        age: The age, in microseconds.
        n_obs: Decisions that have reached it.
        share: Share of those that had a label by then.
        arrived: Share of the labels that has arrived by then, of all that ever come within the time watched.
        lower: Lower end of its interval.
        upper: Upper end.
    """

    age: int
    n_obs: int
    share: float
    arrived: float
    lower: float
    upper: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class KindCurves:
    """Outcomes of one kind.

    Attributes:
        kind: Such as `"fraud"`.
        now: The curve of the later half of the decisions.
        before: The curve of the earlier half; empty where there is none.
        told: Some ages of `now`, with the same ages of `before` where it is known, for a table.
        half_now: Age by which half of the labels have arrived, in microseconds; None where it is not known.
        half_before: The same of the earlier half.
    """

    kind: str
    now: tuple[Age, ...]
    before: tuple[Age, ...]
    told: tuple[tuple[Age, Age | None], ...]
    half_now: int | None
    half_before: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaturitySeen:
    """How late outcomes are.

    Attributes:
        kinds: One for each kind of outcome.
        start: Event time of the earliest decision looked at, in microseconds.
        middle: Where the later half begins.
        end: Until when the world was watched.
        n_decisions: Decisions looked at.
        n_labelled: How many of them have an outcome of any kind.
        one_in: One request in so many was read.
        reason: Why there is nothing to show, in words; empty where there is.
    """

    kinds: tuple[KindCurves, ...]
    start: int
    middle: int
    end: int
    n_decisions: int
    n_labelled: int
    one_in: int
    reason: str

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        return "\n".join(f"{one.kind}: half of the labels by {length(one.half_now)}" for one in self.kinds)


def outcomes_maturity(home: Path) -> MaturitySeen:
    """Reads how fast labels arrive, of the decisions of the last `PERIOD` that there are.

    Args:
        home: Folder of everything vitok writes.
    """
    folder = stores.logs(home)
    return _nothing("Nothing was decided yet.") if folder is None else _maturity(folder, sizes(folder))


def _nothing(reason: str, n: int = 0) -> MaturitySeen:
    return MaturitySeen(kinds=(), start=0, middle=0, end=0, n_decisions=n, n_labelled=0, one_in=1, reason=reason)


@functools.lru_cache(maxsize=4)
def _maturity(folder: Path, read: object) -> MaturitySeen:
    import polars as pl

    del read
    taken = one_in(folder / "decisions", most=SAMPLED)
    made, _ = taken_rows(folder / "decisions", ("request_id", "event_time"), one_in=taken)
    if made is None:
        return _nothing("Nothing was decided yet.")
    came = None
    if segments(folder / "outcomes"):
        came, _ = taken_rows(folder / "outcomes", ("request_id", "kind", "ingest_time"), one_in=taken)
    if came is None:
        return _nothing("No outcome has arrived yet, so nobody knows how long one takes.", made.height)
    moment = pl.col("event_time").to_physical()
    last = int(made["event_time"].to_physical().max() or 0)  # type: ignore[arg-type]
    made = made.filter(moment > last - PERIOD)
    first = int(made["event_time"].to_physical().min() or 0)  # type: ignore[arg-type]
    end = max(last, int(came["ingest_time"].to_physical().max() or 0))  # type: ignore[arg-type]
    own = came.join(made.select("request_id"), on="request_id", how="semi")
    if not own.height:
        return _nothing("No decision of this time has an outcome yet.", made.height)
    waited = own.join(made, on="request_id").select(
        pl.col("event_time").to_physical(),
        wait=pl.col("ingest_time").to_physical() - pl.col("event_time").to_physical(),
    )
    longest = int(waited["wait"].max() or 0)  # type: ignore[arg-type]
    # The latest decisions have no label yet; halves of what has some can be held against each other.
    middle = (first + int(waited["event_time"].max() or last)) // 2  # type: ignore[arg-type]
    # A clock that ran ahead for one outcome must not stretch the axis over years.
    horizon = max(min(end - first, 2 * PERIOD, longest * 5 // 4), HOUR)
    ages = sorted({*_spaced(horizon), *(age for age in _TOLD if age <= horizon)})
    halves = [made.filter(moment >= middle), made.filter(moment < middle)]
    frames = [decisions.maturity(half, own, ages, as_of=end) if half.height else None for half in halves]
    kinds = sorted(map(str, own["kind"].unique()))
    return MaturitySeen(
        kinds=tuple(_curves(kind, [_of(frame, kind) for frame in frames]) for kind in kinds),
        start=first,
        middle=middle,
        end=end,
        n_decisions=made.height,
        n_labelled=own["request_id"].n_unique(),
        one_in=taken,
        reason="",
    )


def _spaced(horizon: int) -> list[int]:
    return [horizon * at // _POINTS for at in range(1, _POINTS + 1)]


def _of(frame: "pl.DataFrame | None", kind: str) -> tuple[Age, ...]:
    if frame is None:
        return ()
    return tuple(
        Age(
            age=row["age"],
            n_obs=row["n_obs"],
            share=row["share"],
            arrived=row["arrived"],
            lower=row["arrived_lower"],
            upper=row["arrived_upper"],
        )
        for row in frame.iter_rows(named=True)
        if row["kind"] == kind
    )


def _curves(kind: str, found: list[tuple[Age, ...]]) -> KindCurves:
    now, before = found
    earlier = {one.age: one for one in before}
    return KindCurves(
        kind=kind,
        now=now,
        before=before,
        told=tuple((one, earlier.get(one.age)) for one in now if one.age in _TOLD),
        half_now=_half(now),
        half_before=_half(before),
    )


def _half(curve: tuple[Age, ...]) -> int | None:
    return next((one.age for one in curve if one.arrived >= 0.5), None)


def maturity_drawn(one: KindCurves) -> Chart:
    """Draws the share of the labels that has arrived, by age: now as a line with its band, before as a dashed one."""
    longest = max((age.age for age in (*one.now, *one.before)), default=1)
    axis = curves.Axis(low=0.0, high=float(max(longest, 1)))

    def points(ages: tuple[Age, ...]) -> list[tuple[float, float]]:
        return [(axis.along(age.age), 100 - 100 * age.arrived) for age in ages]

    return Chart(
        title=f"Share of the outcomes of kind {one.kind} that has arrived, by age",
        bands=curves.bands(
            (
                (axis.along(age.age), 100 - 100 * age.upper, 100 - 100 * age.lower)
                for age in one.now
                if math.isfinite(age.arrived)
            ),
            "actual",
        ),
        lines=(curves.line(points(one.before), "bound"), curves.line(points(one.now), "actual")),
        y_labels=(share(1.0), share(0.5), share(0.0)),
        x_labels=("0", length(longest // 2), length(longest)),
    )
