"""The read functions behind every page and every command that shows something: a home folder in, frozen results out."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitok import decisions
from vitok.clock import DAY
from vitok.console import stores
from vitok.console.alert_reading import AlertsSeen, alerts
from vitok.console.block_reading import BlocksSeen, blocks
from vitok.console.decision_reading import (
    DecisionFilters,
    DecisionsPage,
    DecisionStory,
    decision_story,
    decisions_page,
)
from vitok.console.drift_reading import DriftAsked, DriftSeen, drift
from vitok.console.estimate_reading import WINDOWS
from vitok.console.feature_story import FeaturesSeen, ViewStory, features, view_story
from vitok.console.incident_reading import IncidentLine, incidents
from vitok.console.labelled_reading import OUTCOME_COLUMNS, label_view, sizes
from vitok.console.model_reading import VersionsSeen, VersionStory, version_story, versions
from vitok.console.newest import newest, one_in, taken_rows
from vitok.console.release_reading import ReleasesSeen, releases
from vitok.console.wording import count, money, plural, share, spoken, time
from vitok.decisions.segments import segments
from vitok.loop import Record
from vitok.monitoring import Alert, EstimateGrade
from vitok.policies import ALLOW, BLOCK, REVIEW, Costs
from vitok.registry import Entry, ModelState
from vitok.systems.fraud import rules
from vitok.systems.fraud.messages import SYSTEM

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "AlertsSeen",
    "DecisionFilters",
    "DecisionStory",
    "DecisionsPage",
    "DriftAsked",
    "DriftSeen",
    "FeaturesSeen",
    "Overview",
    "ReleasesSeen",
    "VersionStory",
    "VersionsSeen",
    "ViewStory",
    "alerts",
    "decision_story",
    "decisions_page",
    "drift",
    "features",
    "overview",
    "releases",
    "version_story",
    "versions",
    "view_story",
]

PERIOD = 60 * DAY
ACTIONS = (ALLOW, REVIEW, BLOCK)
_MOST_EVENTS = 8
_SAMPLED = 250_000
_RULE_FEATURES = ("customer_count_1h", "amount_to_mean", "terminal_labels_risk_7d")
_COLUMNS = ("request_id", "event_time", "amount", "action", "route", "model_version", "feature_status", "latency_us")
_TOLD = ("promoted", "canary_started", "canary_ended", "rolled_back", "registered")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DayOfDecisions:
    """What was decided on a day of event time.

    Attributes:
        day: Its beginning, in microseconds.
        actions: Decisions by action.
        n_labelled: How many of them have an outcome.
        cost: What those cost, in the amounts' currency.
        rules_cost: What the rules would have cost on the same.
    """

    day: int
    actions: Mapping[str, int]
    n_labelled: int
    cost: float
    rules_cost: float

    @property
    def n(self) -> int:
        """Decisions of the day."""
        return sum(self.actions.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Money:
    """What the decisions with a known outcome cost, in the amounts' currency.

    Attributes:
        n: How many they are.
        n_fraud: How many of them are frauds.
        fraud_amount: What those frauds amount to.
        stopped_amount: What of it was blocked or sent to review.
        cost: What the actions cost: fraud let pass, reviews, honest customers blocked.
        rules_cost: What the rules would have cost on the same decisions.
        allowed_cost: What allowing everything would have cost.
        versions: The same by the version that decided, by name; empty within such a part.
    """

    n: int
    n_fraud: int
    fraud_amount: float
    stopped_amount: float
    cost: float
    rules_cost: float
    allowed_cost: float
    versions: "tuple[tuple[str, Money], ...]" = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """The decisions of the last days.

    Attributes:
        total: Decisions in the whole log.
        last: Event time of the latest, in microseconds.
        days: The days of the period, oldest first.
        money: What they cost.
        one_in: Money and shares are of one request in so many, and stand for all.
        last_day: Decisions of the 24 hours before the latest.
        fallback_share: Share of those that a fallback answered.
        stale_share: Share of those with a feature that was stale or missing.
        latency_p50: Median latency of those, in microseconds.
        latency_p99: Their 99 % quantile.
    """

    total: int
    last: int
    days: tuple[DayOfDecisions, ...]
    money: Money
    one_in: int
    last_day: int
    fallback_share: float
    stale_share: float
    latency_p50: float
    latency_p99: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Happening:
    """Something that happened, for the overview.

    Attributes:
        time: When, in microseconds.
        text: What, in words.
        tone: `"good"`, `"bad"` or `"plain"`.
    """

    time: int
    text: str
    tone: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overview:
    """How the system is, at a glance.

    Attributes:
        verdict: `"ok"`, `"watch"` (a warning is open), `"act"` (something critical is), or `"empty"`.
        summary: The same in a sentence.
        state: Where the model stands.
        serving_since: Since when the version in Production serves, in microseconds, or None.
        canary_record: The release record of the running canary, or None.
        traffic: The decisions, or None where there are none.
        blocks: What is known of the blocks of the version that serves; None where none serves, or nothing was decided.
        alerts: Open alerts, critical first.
        incidents: Open incidents, the latest first.
        estimates: How good estimates of the version in Production have been, by metric; empty where there are none.
        watched_until: End of the last day that was watched, in microseconds, or None.
        happenings: What happened last, the latest first.
    """

    verdict: str
    summary: str
    state: ModelState
    serving_since: int | None
    canary_record: Record | None
    traffic: Traffic | None
    blocks: BlocksSeen | None
    alerts: tuple[Alert, ...]
    incidents: tuple[IncidentLine, ...]
    estimates: tuple[EstimateGrade, ...]
    watched_until: int | None
    happenings: tuple[Happening, ...]

    @property
    def production(self) -> str | None:
        """The version that serves, or None."""
        return None if self.state.production is None else f"{self.state.model}/{self.state.production}"

    @property
    def canary(self) -> str | None:
        """The version that answers a share, or None."""
        return None if self.state.canary is None else f"{self.state.model}/{self.state.canary}"

    def __str__(self) -> str:
        lines = [self.summary]
        if self.traffic is not None:
            lines.append(f"{count(self.traffic.total)} decisions, the latest {time(self.traffic.last)}")
            money_of = self.traffic.money
            lines.append(f"{money(money_of.rules_cost - money_of.cost)} saved against rules on {count(money_of.n)}")
        if self.blocks is not None:
            lines.append(f"blocks: {self.blocks}")
        return "\n".join([*lines, *(f"  {alert}" for alert in self.alerts)])


def overview(home: Path) -> Overview:
    """Reads how the system is.

    Args:
        home: Folder of everything vitok writes.
    """
    with stores.ledger(home) as ledger:
        state = ModelState(model=SYSTEM) if ledger is None else ledger.state(SYSTEM)
        history = () if ledger is None else ledger.history(SYSTEM)
    with stores.alert_store(home) as store:
        opened = () if store is None else store.open(system=SYSTEM)
        raised = () if store is None else store.history(system=SYSTEM)
        until = None if store is None else store.watched_until(SYSTEM)
    traffic = _traffic(home, _costs(home, state))
    since = next(
        (
            entry.time_us
            for entry in reversed(history)
            if entry.kind == "promoted" and entry.stage_to == "Production" and entry.version == state.production
        ),
        None,
    )
    canary = None
    if state.canary is not None:
        name = f"{SYSTEM}/{state.canary}"
        found = [item for item in stores.records(home).list("release") if item.version == name and item.is_open]
        canary = found[-1] if found else None
    troubles = incidents(home).open
    verdict, summary = _verdict(state, since, opened, troubles, traffic)
    return Overview(
        verdict=verdict,
        summary=summary,
        state=state,
        serving_since=since,
        canary_record=canary,
        traffic=traffic,
        blocks=None if state.production is None else blocks(home, f"{SYSTEM}/{state.production}"),
        alerts=opened,
        incidents=troubles,
        estimates=_estimates(home, state),
        watched_until=until,
        happenings=_happenings(history, raised),
    )


def _estimates(home: Path, state: ModelState) -> tuple[EstimateGrade, ...]:
    with stores.estimates(home) as ledger:
        subject = f"{state.model}/{state.production}"
        metrics = () if ledger is None else ledger.subjects().get(subject, ())
        return () if ledger is None else tuple(ledger.grade(subject, name, last=WINDOWS) for name in metrics[:6])


def _verdict(
    state: ModelState,
    since: int | None,
    opened: tuple[Alert, ...],
    found: tuple[IncidentLine, ...],
    traffic: Traffic | None,
) -> tuple[str, str]:
    if state.production is None and traffic is None and not opened and not found:
        return "empty", "Nothing serves yet, and nothing was decided."
    serving = (
        "No version is in Production; rules decide"
        if state.production is None
        else f"{SYSTEM}/{state.production} serves since {time(since)}"
    )
    critical = sum(alert.severity == "critical" for alert in opened)
    if critical:
        return "act", f"{serving}; {plural(critical, 'critical alert')} open."
    if opened or found or state.production is None:
        what = plural(len(opened), "alert") if opened else plural(len(found), "incident") if found else ""
        return "watch", serving + (f"; {what} open." if what else ".")
    return "ok", f"{serving}; no alert is open."


def _happenings(history: tuple[Entry, ...], raised: tuple[Alert, ...]) -> tuple[Happening, ...]:
    found = []
    for entry in history:
        if entry.kind not in _TOLD:
            continue
        move = f" to {entry.stage_to}" if entry.kind == "promoted" else ""
        bad = entry.kind == "rolled_back" or entry.details.get("verdict") == "refused"
        good = entry.kind == "promoted" and entry.stage_to == "Production"
        tone = "bad" if bad else "good" if good else "plain"
        text = f"{entry.model}/{entry.version} {spoken(entry.kind)}{move}"
        found.append(Happening(time=entry.time_us, text=text, tone=tone))
    for alert in raised:
        text = f"{alert.severity} alert: {spoken(alert.rule)} of {alert.version}"
        found.append(Happening(time=alert.raised_at, text=text, tone="bad"))
        if alert.cleared_at is not None:
            text = f"alert cleared: {spoken(alert.rule)} of {alert.version}"
            found.append(Happening(time=alert.cleared_at, text=text, tone="plain"))
    # The sort is stable, so that of one moment the later line of the ledger stays the later one.
    return tuple(sorted(found, key=lambda item: item.time)[: -_MOST_EVENTS - 1 : -1])


def _costs(home: Path, state: ModelState) -> Costs:
    number = state.production or state.latest
    policy = stores.policy(home, state.version(number)) if number else None
    return Costs() if policy is None else policy.costs


def _traffic(home: Path, costs: Costs) -> Traffic | None:
    folder = stores.logs(home)
    return None if folder is None else _summed(folder, costs, sizes(folder))


@functools.lru_cache(maxsize=4)
def _summed(folder: Path, costs: Costs, read: object) -> Traffic | None:
    import polars as pl

    del read
    rows, total = newest(folder / "decisions", ("event_time",), None, skip=0, most=1)
    if not rows:
        return None
    last = stores.microseconds(rows[0]["event_time"])
    until = last // DAY * DAY + DAY
    within = (pl.col("event_time").to_physical() >= until - PERIOD) & (pl.col("event_time").to_physical() < until)
    every, _ = taken_rows(folder / "decisions", ("event_time", "action"), one_in=1)
    taken = one_in(folder / "decisions", most=_SAMPLED)
    columns = [*_COLUMNS, *(f"f_{name}" for name in _RULE_FEATURES)]
    sampled, _ = taken_rows(folder / "decisions", columns, one_in=taken)
    # A sample of a log of a few may hold none of the last day's, or none at all.
    if every is None or sampled is None:
        return None
    made = every.filter(within)
    labelled = _with_labels(folder, sampled.filter(within), taken)
    latest = int(made["event_time"].to_physical().max() or last)  # type: ignore[arg-type]
    recent = sampled.filter(pl.col("event_time").to_physical() > latest - DAY)
    return Traffic(
        total=total,
        last=latest,
        days=_days(made, labelled, costs, taken),
        money=_money(labelled, costs, taken),
        one_in=taken,
        last_day=made.filter(pl.col("event_time").to_physical() > latest - DAY).height,
        fallback_share=_share(recent["route"] == "fallback"),
        stale_share=_share(recent["feature_status"] != "fresh"),
        latency_p50=float(recent["latency_us"].quantile(0.5) or 0.0),
        latency_p99=float(recent["latency_us"].quantile(0.99) or 0.0),
    )


def _share(flags: "pl.Series") -> float:
    return float(flags.sum()) / len(flags) if len(flags) else 0.0


def _with_labels(folder: Path, logged: "pl.DataFrame", taken: int) -> "pl.DataFrame":
    import polars as pl

    came = taken_rows(folder / "outcomes", OUTCOME_COLUMNS, one_in=taken)[0] if segments(folder / "outcomes") else None
    if came is None:
        return logged.with_columns(label=pl.lit(None, pl.Float64))
    return decisions.join(logged, label_view(came))


def _realised(frame: "pl.DataFrame", costs: Costs) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    amount = frame["amount"].fill_null(0.0).to_numpy()
    fraud = frame["label"].to_numpy() == 1.0
    actual = costs.realised(frame["action"].to_numpy(), amount, fraud)
    columns = {name: frame[f"f_{name}"].fill_null(float("nan")).to_numpy() for name in _RULE_FEATURES}
    by_rules = np.array(rules.rule_actions(rules.rule_score({"amount": amount, **columns})), dtype=object)
    return amount, fraud, actual, costs.realised(by_rules, amount, fraud)


def _money(labelled: "pl.DataFrame", costs: Costs, taken: int) -> Money:
    known = labelled.drop_nulls("label")
    amount, fraud, actual, by_rules = _realised(known, costs)
    stopped = fraud & (known["action"].to_numpy() != ALLOW)
    deciders = known["model_version"].to_numpy()

    def of(rows: np.ndarray, versions: tuple[tuple[str, Money], ...] = ()) -> Money:
        return Money(
            n=taken * int(rows.sum()),
            n_fraud=taken * int(fraud[rows].sum()),
            fraud_amount=taken * float(amount[rows & fraud].sum()),
            stopped_amount=taken * float(amount[rows & stopped].sum()),
            cost=taken * float(actual[rows].sum()),
            rules_cost=taken * float(by_rules[rows].sum()),
            allowed_cost=taken * float(amount[rows & fraud].sum()),
            versions=versions,
        )

    parts = tuple((name, of(deciders == name)) for name in known["model_version"].unique().sort().to_list())
    return of(np.ones(known.height, dtype=bool), parts)


def _days(made: "pl.DataFrame", labelled: "pl.DataFrame", costs: Costs, taken: int) -> tuple[DayOfDecisions, ...]:
    import polars as pl

    day = pl.col("event_time").to_physical() // DAY
    counts: dict[int, dict[str, int]] = {}
    for start, action, n in made.with_columns(day=day).group_by("day", "action").len().iter_rows():
        counts.setdefault(start, {})[action] = n
    known = labelled.drop_nulls("label").with_columns(day=day)
    _, _, actual, by_rules = _realised(known, costs)
    sums = known.select("day").with_columns(pl.Series("cost", actual), pl.Series("rules", by_rules))
    costs_of = {
        start: (n, cost, ruled)
        for start, n, cost, ruled in sums.group_by("day")
        .agg(pl.len(), pl.col("cost").sum(), pl.col("rules").sum())
        .iter_rows()
    }
    first, last = min(counts), max(counts)
    days = []
    for start in range(first, last + 1):
        n, cost, ruled = costs_of.get(start, (0, 0.0, 0.0))
        days.append(
            DayOfDecisions(
                day=start * DAY,
                actions=counts.get(start, {}),
                n_labelled=taken * n,
                cost=taken * float(cost),
                rules_cost=taken * float(ruled),
            )
        )
    return tuple(days)


def told_share(part: float, whole: float) -> str:
    """Writes a part of a whole as a share; a dash where there is no whole."""
    return share(part / whole) if whole else "–"
