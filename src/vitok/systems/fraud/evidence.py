"""What the fraud system knows of itself when the playbook asks: its data, what was changed, and where it shows."""

from collections.abc import Callable, Sequence
from typing import Any

from vitok.clock import DAY, HOUR, isoformat
from vitok.loop import Change, Fact, changes_in_ledger
from vitok.loop.incidents import ALL_VERSIONS
from vitok.loop.triage import ANOTHER, TriageRules, of_any_length
from vitok.monitoring import Alerts, ReferenceProfile, Sketches, WatchRules, WindowCounts, check_quality, diagnose
from vitok.monitoring.conditions import fallback_finding
from vitok.registry import Registry
from vitok.systems.fraud import rules as by_hand
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.overrides import Overrides
from vitok.systems.fraud.sketching import VIEWS

_SHOWN = 3


class FraudEvidence:
    """Answers the questions of triage from sketches, alerts, ledger and overrides; no row of the log is read.

    Args:
        registry: Where versions stand.
        sketches: Hourly counts of the log.
        alerts: What else is out of order.
        overrides: What was changed for a while.
        profile_of: Gives the reference profile of a version.
        rules: What the watch looks for.
    """

    def __init__(
        self,
        registry: Registry,
        sketches: Sketches,
        alerts: Alerts,
        overrides: Overrides,
        profile_of: Callable[[str], ReferenceProfile | None],
        rules: WatchRules,
    ) -> None:
        self._registry = registry
        self._sketches = sketches
        self._alerts = alerts
        self._overrides = overrides
        self._profile_of = profile_of
        self._rules = rules

    def integrity(self, alert: dict[str, Any], now: int) -> Sequence[Fact]:  # noqa: ARG002
        """Says whether the data of the window that the alert is about are in order, and whether decisions came."""
        facts = []
        window, profile = self._window(alert)
        question = "nulls, units, categories and joins"
        if window is None or profile is None:
            facts.append(Fact(question=question, finding="unknown", text="no version with a profile decided then"))
        else:
            faults = check_quality(profile, window, views=VIEWS, rule=self._rules.faults)
            for fault in faults:
                named = f"{fault.kind} of {', '.join(fault.columns)}"
                facts.append(Fact(question=named, finding="found", text=fault.reason, value=fault.value, n=window.n))
            if not faults:
                told = f"no fault in {len(profile.names)} features"
                facts.append(Fact(question=question, finding="ruled out", text=told, n=window.n))
        absence = {rule.name for rule in (self._rules.absence, self._rules.hourly_absence) if rule is not None}
        missing = [one for one in self._alerts.open(system=SYSTEM) if one.rule in absence]
        facts += [Fact(question="volume", finding="found", text=one.reason, value=one.value) for one in missing]
        if not missing:
            facts.append(Fact(question="volume", finding="ruled out", text="decisions come as they used to"))
        return facts

    def changes(self, since: int, until: int) -> Sequence[Change]:
        """Lists what came into force or left it, by the ledger and by overrides."""
        found = list(changes_in_ledger(self._registry.ledger, SYSTEM, since, until))
        for one in self._overrides.history():
            if since <= one.since <= until:
                found.append(Change(time_us=one.since, kind="policy", version="", text=str(one)))
        return found

    def where(self, alert: dict[str, Any], now: int) -> Sequence[Fact]:  # noqa: ARG002
        """Says what has happened by its name, in which columns it shows most, and whether the model answers."""
        facts = []
        if alert["slice"]:
            told = "the alert is about it alone"
            facts.append(Fact(question=f"slice {alert['slice']}", finding="found", text=told, value=alert["value"]))
        window, profile = self._window(alert)
        if window is not None and profile is not None:
            slices = self._sketches.slices(window.model_version, window.start, window.end) if profile.slices else ()
            found = diagnose(profile, window, slices=slices, views=VIEWS)
            span = f"from {isoformat(window.start)} to {isoformat(window.end)}"
            if not found.names:
                facts.append(
                    Fact(question="drift", finding="ruled out", text=f"features and scores {span} are as they were")
                )
            else:
                told = f"{', '.join(found.names)}, {span}" + (f", where {found.where}" if found.where else "")
                facts.append(Fact(question="drift", finding="found", text=told, n=window.n))
            measured = {item.name: item for item in found.data.features}
            for name in [name for name in found.columns if name in measured][:_SHOWN]:
                item = measured[name]
                facts.append(Fact(question=name, finding="found", text=str(item), value=item.effect, n=window.n))
        facts.append(self._answering(alert))
        if of_any_length(alert["rule"]) in TriageRules().model_out:
            facts.append(self._another(alert))
        return facts

    def _another(self, alert: dict[str, Any]) -> Fact:
        end = int(alert["raised_at"]) // HOUR * HOUR
        start = end - (HOUR if alert["rule"].endswith("_1h") else DAY)
        totals = self._sketches.totals(start, end)
        n = 0 if totals is None else totals.routes.get("fallback", 0)
        if not n:
            return Fact(question=ANOTHER, finding="unknown", text="no decision was answered by a fallback")
        by_rules = min(n, self._sketches.versions(start, end).get(by_hand.VERSION, 0))
        text = f"of {n:,} decisions that the version in force did not answer, rules answered {by_rules:,}"
        return Fact(question=ANOTHER, finding="ruled out" if 2 * by_rules > n else "found", text=text, n=n)

    def _answering(self, alert: dict[str, Any]) -> Fact:
        end = int(alert["raised_at"]) // HOUR * HOUR
        totals = self._sketches.totals(end - DAY, end)
        finding = None if totals is None else fallback_finding(totals, self._rules)
        if finding is None:
            return Fact(
                question="fallbacks", finding="unknown", text="too few decisions to say whether the model answers"
            )
        state = "found" if finding.firing else "ruled out"
        assert totals is not None  # noqa: S101
        return Fact(question="fallbacks", finding=state, text=finding.reason, value=finding.value, n=totals.n)  # type: ignore[arg-type]

    def _window(self, alert: dict[str, Any]) -> tuple[WindowCounts | None, ReferenceProfile | None]:
        # Quality is measured once labels are in: what was wrong with the data then explains it, not what is now.
        end, length = int(alert["raised_at"]) // HOUR * HOUR, DAY
        if of_any_length(alert["rule"]) in TriageRules().quality:
            end, length = end - self._rules.maturity // HOUR * HOUR, self._rules.trailing
        version = alert["version"]
        if version == ALL_VERSIONS:
            number = self._registry.state(SYSTEM).production
            version = f"{SYSTEM}/{number}" if number is not None else ""
        return self._sketches.window(version, end - length, end), self._profile_of(version)
