"""Keeps labels of a source that has gone wrong away from whoever learns from labels, until it is well again.

What is held is not deleted: the log keeps it, and a label view leaves it out, for training, for gates, for judges and
for estimates alike. `judge_sources` says who is at fault; this module remembers since when.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitok.clock import DAY, isoformat
from vitok.engines.sqlite import Database
from vitok.errors import InvalidInput
from vitok.monitoring.conditions import Finding
from vitok.monitoring.label_sources import SourceCounts, SourceFinding, SourceRules, judge_sources
from vitok.monitoring.rules import AlertRule
from vitok.monitoring.sketches import ALL_VERSIONS
from vitok.stats.results import Result

if TYPE_CHECKING:
    import polars as pl

LABEL_SOURCE = AlertRule(
    name="label_source",
    severity="critical",
    playbook="ask the source that the reason names; its labels are held back, do not retrain on them",
    windows=1,
    clear_after=2,
)
_SCHEMA = """
CREATE TABLE hold (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    since INTEGER NOT NULL,
    until INTEGER,
    reason TEXT NOT NULL,
    ended TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE UNIQUE INDEX hold_open ON hold (source) WHERE until IS NULL;
CREATE TABLE looked (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    day INTEGER NOT NULL
) STRICT;
"""
_FOREVER = 2**62
_LONGEST = 7
_HOLD = "id, source, since, until, reason, ended"


@dataclass(frozen=True, kw_only=True)
class GuardRules:
    """How sources of labels are watched.

    Attributes:
        source: When a source has gone wrong.
        windows: Lengths of the windows that are judged at the end of each day, in days: a day sees much at once, more
            days see less.
        quiet: Days in a row on which a held source must be in order before it is believed again; up to 7 where it
            reports too little to be judged by so few.
    """

    source: SourceRules = field(default_factory=SourceRules)
    windows: tuple[int, ...] = (1, 3)
    quiet: int = 2

    def __post_init__(self) -> None:
        if not self.windows or min(self.windows) < 1:
            raise InvalidInput("guard rules: windows", self.windows, "be lengths of at least a day")
        if not 1 <= self.quiet <= _LONGEST:
            raise InvalidInput("guard rules: quiet", self.quiet, f"be from 1 to {_LONGEST}")


@dataclass(frozen=True, kw_only=True)
class Hold(Result):
    """A span in which a source is not believed.

    Attributes:
        id: Its number.
        source: Which source.
        since: Labels that came from then on are held, microseconds.
        until: Those that came from then on are believed again; None while it lasts.
        reason: Why it began.
        ended: Why it ended; empty while it lasts.
    """

    id: int
    source: str
    since: int
    until: int | None
    reason: str
    ended: str

    def __str__(self) -> str:
        end = "until now" if self.until is None else f"until {isoformat(self.until)}, {self.ended}"
        return f"labels of {self.source} held since {isoformat(self.since)} {end}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class LookedDay(Result):
    """What the guard saw at the end of a day.

    Attributes:
        end: End of the day, microseconds.
        findings: One for each source and window.
        held: Sources that are held then.
    """

    end: int
    findings: tuple[SourceFinding, ...]
    held: tuple[str, ...]

    @property
    def finding(self) -> Finding:
        """The day for `Alerts.observe`, as a rule's finding about all versions."""
        at_fault = [one for one in self.findings if one.firing]
        far = max((max(one.ratio, 1 / max(one.ratio, 1e-9)) for one in at_fault), default=float(bool(self.held)))
        reason = "; ".join(str(one) for one in at_fault) or f"{len(self.findings)} looks at sources, none at fault"
        if self.held and not at_fault:
            reason = f"{', '.join(self.held)} held, not at fault today"
        return Finding(
            rule=LABEL_SOURCE,
            version=ALL_VERSIONS,
            firing=bool(self.held),
            value=far,
            bound=1.0,
            reason=reason,
        )

    def __str__(self) -> str:
        return f"{isoformat(self.end)[:10]}: {self.finding.reason}"


class LabelGuard:
    """Watches the sources of a system's labels.

    Args:
        path: The SQLite file that keeps what is held; made where it does not exist.
        rules: How sources are watched.

    Raises:
        StoreError: If the file cannot be opened, or is something else.

    Example:
        >>> import tempfile
        >>> import polars as pl
        >>> from vitok.clock import HOUR
        >>> rows = []
        >>> for hour in range(24 * 31):
        ...     for source in ("bank", "shop"):
        ...         flood = source == "shop" and hour >= 24 * 30
        ...         rows += [(source, float(i < (20 if flood else 1)), hour * HOUR) for i in range(50)]
        >>> view = pl.DataFrame(rows, schema=["source", "label", "label_ingest_time"], orient="row")
        >>> view = view.with_columns(pl.col("label_ingest_time").cast(pl.Datetime("us", "UTC")))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     guard = LabelGuard(Path(folder) / "holds.sqlite")
        ...     days = guard.look(view, 31 * DAY)
        ...     print(days[-1].held, len(view), len(guard.trusted(view)))
        ...     guard.close()
        ('shop',) 74400 73200
    """

    def __init__(self, path: str | Path, *, rules: GuardRules | None = None) -> None:
        self.rules = rules or GuardRules()
        self._database = Database(path, schema=_SCHEMA, kind="label holds", version=1, durable=True)

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def look(self, view: "pl.DataFrame", now: int) -> tuple[LookedDay, ...]:
        """Judges the days of arrival that have closed since the look before, in order, each once.

        Args:
            view: All labels known now, as `vitok.decisions.labels` gives them, those that are held among them; at
                least those of the reference and the windows before the days in question.
            now: The present, in microseconds.

        Returns:
            What was seen on each day.

        Raises:
            StoreError: If what is held cannot be read or written; the next look goes on there.
        """
        # What came at a time that has not come yet, was written while a clock was ahead.
        arrived = view["label_ingest_time"].to_physical() < now // DAY * DAY
        counts = SourceCounts.of(view.filter(arrived & view["source"].is_not_null() & view["label"].is_not_null()))
        if not len(counts.days):
            return ()
        rows = self._database.read("SELECT day FROM looked")
        first = int(counts.days[0]) if not rows else rows[0][0] + 1
        return tuple(self._look(counts, day) for day in range(first, now // DAY))

    def _look(self, counts: SourceCounts, day: int) -> LookedDay:
        holds = self.holds()
        left_out = _held(counts, holds)
        findings = []
        for window in self.rules.windows:
            for one in judge_sources(counts, day, window=window, rules=self.rules.source, left_out=left_out):
                # What a hold has told already must not tell it once more when it is over.
                old = window > 1 and any(
                    hold.source == one.source and (hold.until or one.end) > one.start for hold in holds
                )
                if not old:
                    findings.append(one)
        held = {hold.source: hold for hold in holds if hold.until is None}
        with self._database.writing() as transaction:
            for one in findings:
                if one.firing and one.source not in held:
                    transaction.execute(
                        "INSERT INTO hold (source, since, reason) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                        (one.source, one.start, one.reason),
                    )
            for hold in held.values():
                self._end_if_quiet(transaction, hold, counts, day, left_out)
            transaction.execute("INSERT INTO looked VALUES (1, ?) ON CONFLICT DO UPDATE SET day = excluded.day", (day,))
        now_held = tuple(sorted(hold.source for hold in self.holds() if hold.until is None))
        return LookedDay(end=(day + 1) * DAY, findings=tuple(findings), held=now_held)

    def _end_if_quiet(self, transaction: Any, hold: Hold, counts: SourceCounts, day: int, left_out: np.ndarray) -> None:
        # Too few labels to judge by are no sign of health: then more days have to be in order.
        for length in range(self.rules.quiet, _LONGEST + 1):
            first = day - length + 1
            if first * DAY < hold.since + DAY:
                return
            looks = [(each, 1) for each in range(first, day + 1)] + [(day, length)]
            found = [self._own(counts, hold.source, end, window, left_out) for end, window in looks]
            if any(one is None or one.firing for one in found):
                return
            if found[-1] is not None and found[-1].expected >= self.rules.source.min_expected:
                why = f"{length} days in a row in order"
                transaction.execute("UPDATE hold SET until = ?, ended = ? WHERE id = ?", (first * DAY, why, hold.id))
                return

    def _own(
        self, counts: SourceCounts, source: str, day: int, window: int, left_out: np.ndarray
    ) -> SourceFinding | None:
        found = judge_sources(counts, day, window=window, rules=self.rules.source, left_out=left_out)
        return next((one for one in found if one.source == source), None)

    def holds(self) -> tuple[Hold, ...]:
        """Returns all holds, those that have ended too, in the order in which they began."""
        rows = self._database.read(f"SELECT {_HOLD} FROM hold ORDER BY since, id")  # noqa: S608
        return tuple(Hold(**dict(zip(_HOLD.split(", "), row, strict=True))) for row in rows)

    def trusted(self, view: "pl.DataFrame", *, arrived: str = "label_ingest_time") -> "pl.DataFrame":
        """Returns the labels that are not held.

        Args:
            view: With a column `source`, and when each label came.
            arrived: Column of that time.
        """
        import polars as pl

        for hold in self.holds():
            since, until = (
                pl.lit(moment).cast(pl.Datetime("us", "UTC")) for moment in (hold.since, hold.until or _FOREVER)
            )
            held = (pl.col("source") == hold.source) & pl.col(arrived).is_between(since, until, closed="left")
            view = view.filter(~held.fill_null(value=False))
        return view

    def hold(self, source: str, *, since: int, why: str) -> None:
        """Holds a source by hand; where it is held already, its hold begins no later than that.

        Raises:
            InvalidInput: If a text is empty.
        """
        if not source or not why.strip():
            raise InvalidInput("source, why", (source, why), "not be empty", "Say which source, and why")
        with self._database.writing() as transaction:
            transaction.execute(
                "INSERT INTO hold (source, since, reason) VALUES (?, ?, ?)"
                " ON CONFLICT (source) WHERE until IS NULL DO UPDATE SET since = min(since, excluded.since)",
                (source, since, why),
            )

    def release(self, source: str, *, until: int, why: str) -> None:
        """Ends the hold of a source by hand: what came from `until` on is believed again.

        Args:
            source: Which source; nothing happens where it is not held.
            until: In microseconds; the beginning of its hold, or earlier, believes all that it sent.
            why: Why it is believed.
        """
        if not why.strip():
            raise InvalidInput("why", why, "not be empty", "Say why the source is believed again")
        with self._database.writing() as transaction:
            transaction.execute(
                "UPDATE hold SET until = max(since, ?), ended = ? WHERE source = ? AND until IS NULL",
                (until, why, source),
            )


def _held(counts: SourceCounts, holds: tuple[Hold, ...]) -> np.ndarray:
    """Returns 1 for each day and source that a hold touches, shape (d, s)."""
    found = np.zeros_like(counts.n)
    for hold in holds:
        if hold.source in counts.sources:
            until = counts.days[-1] + 1 if hold.until is None else -(-hold.until // DAY)
            touched = (counts.days >= hold.since // DAY) & (counts.days < until)
            found[touched, counts.sources.index(hold.source)] = 1
    return found
