"""What watches the service: hourly sketches of its log, each closed day judged, alerts, no step."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitok import decisions, monitoring
from vitok.clock import DAY
from vitok.decisions.segments import segments
from vitok.decisions.selection import HIDING
from vitok.errors import NotFound
from vitok.monitoring.counting import KIND
from vitok.monitoring.estimate_ledger import EstimatePair
from vitok.monitoring.estimate_watch import EstimateWatch
from vitok.monitoring.label_guard import LabelGuard
from vitok.policies import Costs
from vitok.registry import Registry
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.label_check import HOLDS
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.sketching import SLICED, SLICES, VIEWS, Profiles, with_slices

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

_LIVE = 7 * DAY
_AT_ONCE = 100_000
_DRIFT = (monitoring.conditions.DATA_DRIFT.name, monitoring.conditions.PREDICTION_DRIFT.name)
_TOLD = ("average_precision", "average_precision_under_shift", "cost", "cost_under_shift")
_WATCHED = (
    "request_id", "event_time", "model_version", "probability", "action", "propensity", "amount",
    *(f"f_{name}" for name in SLICED if name != "amount"),
)  # fmt: skip
_COUNTED = ("probability", *(f"f_{name}" for name in FEATURES.names))
_LOG = logging.getLogger("vitok.fraud")


class Observer:
    """Keeps the sketches of the log up to date, and raises and clears alerts; it takes no step itself.

    Args:
        home: The service's home folder.
        registry: Where versions, with their reference profiles, are kept.
        label_delay: Age at which labels are taken to be known, microseconds.
        costs: What actions cost.
        rules: What the watch looks for.
    """

    def __init__(
        self,
        home: Path,
        registry: Registry,
        *,
        label_delay: int,
        costs: Costs,
        rules: monitoring.WatchRules | None = None,
    ) -> None:
        self.home = home
        self.registry = registry
        self.label_delay = label_delay
        self.sketches = monitoring.Sketches(home / "monitoring" / "sketches.sqlite")
        self.alerts = monitoring.Alerts(home / "monitoring" / "alerts.sqlite")
        self.guard = LabelGuard(home / HOLDS)
        self.profiles = Profiles(registry)
        self.estimates = monitoring.EstimateLedger(home / "monitoring" / "estimates.sqlite")
        self.watch = monitoring.Watch(
            SYSTEM,
            profile_of=self.profile,
            sketches=self.sketches,
            alerts=self.alerts,
            rules=rules or watch_rules(label_delay),
            labelled=self._matured,
            logged=self.logged,
            costs=costs,
            hiding=HIDING,
            views=VIEWS,
            weights=self.profiles.weights,
            estimates=EstimateWatch(
                self.estimates,
                estimator_of=self.profiles.estimator,
                costs=costs,
                featured=self._featured,
                hiding=HIDING,
            ),
            sets_of=self.profiles.sets,
            groups=_groups,
        )
        self._log = home / "log" / "decisions"
        self._tail = decisions.Tail(self._log, self.sketches.position())
        self._labels: tuple[int, pl.DataFrame] | None = None
        self._looked_at_labels = -1
        self.tell: Callable[[int, str], None] = lambda _moment, text: _LOG.info("%s", text)

    def profile(self, version: str) -> monitoring.ReferenceProfile | None:
        """Returns the reference profile of a version such as `"fraud/2"`; None for the rules."""
        return self.profiles.profile(version)

    def follow(self) -> "pl.DataFrame | None":
        """Sketches what was logged since, and returns it; None where there is nothing new."""
        return self._count(None)

    def catch_up(self) -> int:
        """Sketches what was logged since, and returns how many decisions that were.

        Segments that were counted at their sealing are taken up without reading a row; rows are read of those that
        are not sealed yet, of those without counts, and of the rest of one whose first rows have been read.
        """
        n = 0
        for number, sealed in self._sealed():
            before = self.sketches.position()
            segment, rows = before or (0, 0)
            if number < segment:
                continue
            if number == segment and rows:
                frame = self._count(sealed.rows - rows) if sealed.rows > rows else None
                n += 0 if frame is None else frame.height
                continue
            behind = (number + 1, 0)
            n += self.sketches.absorb([(sealed.segment, sealed.data)], position=behind, since=before)
            self._tail.close()
            self._tail = decisions.Tail(self._log, behind)
        while (frame := self._count(_AT_ONCE)) is not None:
            n += frame.height
        return n

    def _sealed(self) -> "list[tuple[int, decisions.Sidecar]]":
        # The segments from where the sketches stand on, up to the first one without counts: that one wants its rows
        # read, and all behind it come after them.
        segment, _ = self.sketches.position() or (0, 0)
        ahead = [one for one in segments(self._log) if one.number >= segment]
        # Of one that was merged since, some rows are counted already: its counts are of all.
        if not ahead or not ahead[0].sealed or (ahead[0].merged and ahead[0].first <= segment):
            return []
        counted = {one.segment: one for one in decisions.sidecars(self._log, KIND)}
        found = []
        for one in ahead:
            if one.name not in counted:
                break
            found.append((one.number, counted[one.name]))
        return found

    def _count(self, max_rows: int | None) -> "pl.DataFrame | None":
        before = self.sketches.position()
        frame = self._tail.read(max_rows)
        if frame is not None:
            self.sketches.follow(with_slices(frame), self.profile, position=self._tail.position, since=before)
        return frame

    def judge(self, now: int) -> monitoring.Watched:
        """Judges the hours and days that have closed, which raises and clears alerts; whoever acts answers them.

        Where a drift was alerted, what was estimated of that day stands in the alert; what its labels say is told
        once they are in.
        """
        watched = self.watch.tick(now)
        for day in watched.days:
            for version, pairs in day.realised:
                self._tell_realised(version, pairs, day.end)
        return watched

    def look_at_labels(self, now: int) -> tuple[monitoring.Alert, ...]:
        """Judges the sources of the labels, day by day of their arrival; one that has gone wrong is held.

        Returns:
            The alerts that this raised or cleared.
        """
        folder = self.home / "log" / "outcomes"
        if now // DAY == self._looked_at_labels or not (folder.is_dir() and any(folder.rglob("segment-*"))):
            return ()
        self._looked_at_labels = now // DAY
        changed = []
        for day in self.guard.look(decisions.labels(folder, as_of=now, kind=SYSTEM), now):
            one = day.finding
            changed.append(
                self.alerts.observe(
                    one.rule,
                    system=SYSTEM,
                    version=one.version,
                    window_end=day.end,
                    firing=one.firing,
                    value=one.value,
                    bound=one.bound,
                    reason=one.reason,
                    now=now,
                )
            )
        return tuple(alert for alert in changed if alert is not None)

    def _tell_realised(self, version: str, pairs: "Sequence[EstimatePair]", now: int) -> None:
        end = pairs[0].end
        rules = [
            alert.rule
            for alert in self.alerts.history(system=SYSTEM)
            if alert.version == version and alert.raised_at == end and alert.rule.startswith(_DRIFT)
        ]
        parts = [_realised(pair) for pair in pairs if pair.estimated.name in _TOLD]
        if rules and parts:
            which = " and ".join(rules)
            self.tell(now, f"labels of the day that raised {which} on {version} are in: {'; '.join(parts)}")

    def is_live(self, now: int) -> bool:
        """Says whether decisions are of these days; a log of the past, such as a replay's, is not watched by the clock.

        Where a live log follows an old one, the days between them are passed over: nobody decided then.
        """
        hours = self.sketches.hours()
        if not hours or now - hours[-1] > _LIVE:
            return False
        until = self.alerts.watched_until(SYSTEM)
        if until is not None and now - until > 2 * _LIVE:
            self.alerts.finish(SYSTEM, hours[-1] // DAY * DAY)
        return True

    def logged(self, start: int, end: int) -> "pl.DataFrame":
        """Returns what drift is counted from, whichever version decided; no row where the log has other features."""
        import polars as pl

        try:
            return decisions.read(self._log, since=start, until=end, columns=_COUNTED)
        except NotFound:
            return pl.DataFrame()

    def labelled(self, start: int, end: int, as_of: int) -> "pl.DataFrame":
        """Returns the decisions of `[start, end)` whose labels were known at `as_of`, with them."""
        return self._featured(start, end, as_of).drop_nulls("label")

    def _featured(self, start: int, end: int, as_of: int) -> "pl.DataFrame":
        return self._joined(decisions.read(self._log, since=start, until=end), as_of)

    def _matured(self, start: int, end: int, as_of: int) -> "pl.DataFrame":
        # All decisions, labelled or not, and of their columns those that watching needs.
        return self._joined(decisions.read(self._log, since=start, until=end, columns=_WATCHED), as_of)

    def _joined(self, logged: "pl.DataFrame", as_of: int) -> "pl.DataFrame":
        # The label view is the same all day; it is read once.
        if self._labels is None or self._labels[0] != as_of:
            view = decisions.labels(self.home / "log" / "outcomes", as_of=as_of, kind=SYSTEM)
            self._labels = (as_of, self.guard.trusted(view))
        return decisions.join(logged, self._labels[1])

    def close(self) -> None:
        """Closes what is open."""
        self._tail.close()
        self.guard.close()
        self.sketches.close()
        self.alerts.close()
        self.estimates.close()


def watch_rules(label_delay: int) -> monitoring.WatchRules:
    """Returns what is looked for in the fraud system.

    Args:
        label_delay: Age at which labels are taken to be known, microseconds.
    """
    baselines = ("healthy", "last week", "last year")
    return monitoring.WatchRules(maturity=label_delay, lengths=(DAY, 7 * DAY), baselines=baselines)


def _groups(rows: "pl.DataFrame") -> dict[str, "np.ndarray"]:
    sliced = with_slices(rows.rename({"amount": "f_amount"}))
    return {name: sliced[name].to_numpy() for name in SLICES if name in sliced.columns}


def _realised(pair: EstimatePair) -> str:
    known = pair.realised
    name = pair.estimated.name.replace("_", " ")
    if known is None:
        return f"{name} not known"
    verdict = "inside the interval" if pair.covered else "outside the interval"
    if known.upper - known.lower > 2 * (pair.estimated.upper - pair.estimated.lower):
        # What was blocked has no outcome: the few that were let pass at random stand for all of it.
        verdict = "too few outcomes of what would be blocked to tell"
    return (
        f"{name} {known.value:.3g} ({known.lower:.3g} to {known.upper:.3g}) where {pair.estimated.value:.3g} was"
        f" estimated ({pair.estimated.lower:.3g} to {pair.estimated.upper:.3g}): {verdict}"
    )
