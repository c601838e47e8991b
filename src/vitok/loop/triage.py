"""What is wrong, asked in the order in which causes are likely and cheap to see: data, recent changes, where.

The order keeps people from mending a model for a feed that broke. Each question leaves a fact with its numbers, also
where the answer is no: what was ruled out belongs into the report.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from vitok.clock import DAY, HOUR, isoformat
from vitok.errors import VitokError
from vitok.registry import Ledger
from vitok.stats.results import Result

ANOTHER = "another version answers"
"""The question whether the version before answers where the one in force does not; only a system may know."""
Finding = Literal["found", "ruled out", "unknown"]
Cause = Literal["data", "release", "model out", "quality", "drift", "unknown"]
_LENGTH = re.compile(r"_\d+[dh]$")
_SERVING = ("promoted", "rolled_back", "canary_started")


@dataclass(frozen=True, kw_only=True)
class Fact(Result):
    """The answer to one question.

    Attributes:
        question: What was asked, such as `"null share of amount"`.
        finding: `"found"` where it is out of order, `"ruled out"` where it is in order, `"unknown"` where it could
            not be seen.
        text: The answer in words.
        value: The number behind it, None where there is none.
        n: How many decisions it rests on, None where that has no meaning.
    """

    question: str
    finding: Finding
    text: str
    value: float | None = None
    n: int | None = None

    def __str__(self) -> str:
        rest = "" if self.n is None else f" (n = {self.n:,})"
        return f"{self.finding}: {self.question}, {self.text}{rest}"


@dataclass(frozen=True, kw_only=True)
class Change(Result):
    """Something that was changed on purpose.

    Attributes:
        time_us: When, in microseconds.
        kind: What kind: `"promoted"`, `"rolled_back"`, `"canary_started"`, `"features"`, `"policy"` and so on.
        version: Which version, empty where it is about none.
        text: What was changed, by whom and why.
        undone_by: Version that a roll back would put back, empty where there is none.
    """

    time_us: int
    kind: str
    version: str
    text: str
    undone_by: str = ""


class Evidence(Protocol):
    """What a system knows of itself; each answer holds its numbers."""

    def integrity(self, alert: dict[str, Any], now: int) -> Sequence[Fact]:
        """Says whether the data are in order: nulls, units, categories, joins, volume, freshness."""
        ...

    def changes(self, since: int, until: int) -> Sequence[Change]:
        """Lists what was changed between two times: `changes_in_ledger`, and definitions, policies, feeds."""
        ...

    def where(self, alert: dict[str, Any], now: int) -> Sequence[Fact]:
        """Says in which slices and columns it shows, the strongest first."""
        ...


@dataclass(frozen=True, kw_only=True)
class TriageRules:
    """How alerts are read.

    Attributes:
        model_out: Rules that say that no model answers.
        quality: Rules that say that decisions got worse.
        calibration: Those of them that say that probabilities are off, whether or not the ranking fell too.
        drift: Rules that say that inputs or scores moved.
        data: Rules that say that data are missing or broken.
        inputs: Rules about what comes in, and signs that prove nothing: they put no release at fault.
        young: A version is young for so long after its promotion, in microseconds.
        back: Changes are looked for so long before the alert began, in microseconds.
    """

    model_out: frozenset[str] = frozenset({"fallback"})
    quality: frozenset[str] = frozenset({"quality", "calibration", "coverage"})
    calibration: frozenset[str] = frozenset({"calibration"})
    drift: frozenset[str] = frozenset({"data_drift", "prediction_drift", "coverage", "confidence"})
    data: frozenset[str] = frozenset({"absence", "data_quality", "skew", "label_source"})
    inputs: frozenset[str] = frozenset({"data_drift", "confidence"})
    young: int = 3 * DAY
    back: int = 7 * DAY


@dataclass(frozen=True, kw_only=True)
class Triage(Result):
    """What was found.

    Attributes:
        cause: The likeliest cause.
        text: Why, in words.
        integrity: The facts about data.
        changes: What was changed before, the latest first.
        where: Where it shows.
        rollback_to: Version that a roll back would put back; empty where no young version is at fault.
    """

    cause: Cause
    text: str
    integrity: tuple[Fact, ...]
    changes: tuple[Change, ...]
    where: tuple[Fact, ...]
    rollback_to: str = ""

    def __str__(self) -> str:
        return f"likeliest cause: {self.cause}; {self.text}"


def triage(alert: dict[str, Any], evidence: Evidence, *, now: int, rules: TriageRules) -> Triage:
    """Asks the questions in order.

    A question that cannot be answered, because what would answer it is down itself, is a fact too, and the next one
    is asked.

    Args:
        alert: The alert as `Alert.to_dict` gives it.
        evidence: What the system knows of itself.
        now: The present, in microseconds.
        rules: How alerts are read.
    """
    integrity = _asked("data integrity", lambda: evidence.integrity(alert, now))
    missing: list[Fact] = []
    try:
        found = evidence.changes(alert["first_seen"] - rules.back, now)
    except VitokError as error:
        found, missing = (), [_unknown("recent changes", error)]
    changes = tuple(sorted(found, key=lambda change: -change.time_us))
    where = _asked("slices", lambda: evidence.where(alert, now))
    broken = [fact for fact in integrity if fact.finding == "found"]
    young = _young(alert, changes, rules)
    rule = of_any_length(alert["rule"])
    if rule in rules.model_out and any((fact.question, fact.finding) == (ANOTHER, "ruled out") for fact in where):
        # To go back to a version that does not answer either would help nobody.
        young = None
    if broken or rule in rules.data:
        text = "; ".join(fact.text for fact in broken) or f"{rule} is about data"
        cause: Cause = "data"
    elif young is not None:
        age = (alert["first_seen"] - young.time_us) / HOUR
        when = f"{age:.3g} h before" if age >= 0 else f"{-age:.3g} h after"
        cause, text = "release", f"{young.version} came into force {when} it began: {young.text}"
    elif rule in rules.model_out:
        cause, text = "model out", "no version answers, and no young one alone is at fault"
    elif rule in rules.quality:
        cause, text = "quality", "decisions got worse, data are in order and no version is young"
    elif rule in rules.drift:
        cause, text = "drift", "the world moved; whether decisions got worse is for the labels to say"
    else:
        cause, text = "unknown", "nothing that was asked explains it"
    return Triage(
        cause=cause,
        text=text,
        integrity=(*integrity, *missing),
        changes=changes,
        where=where,
        rollback_to="" if young is None else young.undone_by,
    )


def changes_in_ledger(ledger: Ledger, model: str, since: int, until: int) -> tuple[Change, ...]:
    """Returns what came into force or left it between two times, as the ledger says."""
    found = []
    for entry in ledger.history(model):
        in_force = entry.kind != "promoted" or entry.stage_to == "Production"
        if entry.kind not in _SERVING or not in_force or not since <= entry.time_us <= until:
            continue
        # What a roll back put into force is not new, and going back from it would put the trouble back.
        former = None if "rollback_of" in entry.details else entry.details.get("from_version")
        found.append(
            Change(
                time_us=entry.time_us,
                kind="restored" if "rollback_of" in entry.details else entry.kind,
                version=f"{model}/{entry.version}",
                text=f"{entry.kind.replace('_', ' ')} by {entry.actor}: {entry.reason}",
                undone_by=f"{model}/{former}" if former and entry.kind == "promoted" else "",
            )
        )
    return tuple(found)


def _young(alert: dict[str, Any], changes: Sequence[Change], rules: TriageRules) -> Change | None:
    if of_any_length(alert["rule"]) in rules.inputs:
        return None
    latest = next((one for one in changes if one.kind in ("promoted", "restored", "rolled_back")), None)
    if latest is None or latest.kind != "promoted" or not latest.undone_by:
        return None
    about_it = alert["version"] in (latest.version, "all")
    # A window that began before the promotion may still be the first that shows it.
    began = alert["first_seen"] - latest.time_us
    return latest if about_it and -DAY <= began <= rules.young else None


def _asked(question: str, ask: Callable[[], Sequence[Fact]]) -> tuple[Fact, ...]:
    try:
        return tuple(ask())
    except VitokError as error:
        return (_unknown(question, error),)


def _unknown(question: str, error: VitokError) -> Fact:
    return Fact(question=question, finding="unknown", text=f"could not be looked at: {error}")


def of_any_length(rule: str) -> str:
    """Returns the name of a rule without the length of its windows.

    Example:
        >>> of_any_length("data_drift_7d"), of_any_length("data_drift")
        ('data_drift', 'data_drift')
    """
    return _LENGTH.sub("", rule)


def line_of(change: Change) -> str:
    """Writes a change in a line."""
    return f"{isoformat(change.time_us)} {change.version or change.kind}: {change.text}"
