"""What was decided: a page of the newest decisions, and the whole story of one."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitok import decisions
from vitok.clock import DAY, parse_time
from vitok.console import stores
from vitok.console.newest import newest, taken_rows
from vitok.console.wording import count, exact_time, share
from vitok.decision import Decision
from vitok.errors import InvalidInput, NotFound
from vitok.models.tree_contributions import TreePaths
from vitok.monitoring import ReferenceProfile
from vitok.policies import ALLOW, BLOCK, REVIEW, TierPolicy
from vitok.registry import Version
from vitok.systems.fraud.messages import OUTCOME_KIND
from vitok.systems.fraud.overrides import policy_as_logged

if TYPE_CHECKING:
    import polars as pl

ROWS = 50
MOST_PAGES = 2_000
ACTIONS = (ALLOW, REVIEW, BLOCK)
ROUTES = ("champion", "canary", "fallback")
_LONGEST = 200
_MOST_REASONS = 6
_KEPT_TREES = 16
# An outcome may be as old as the log.
_WHOLE = 2**31
_COLUMNS = (
    "decision_id",
    "request_id",
    "event_time",
    "customer_id",
    "terminal_id",
    "amount",
    "probability",
    "action",
    "route",
    "model_version",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecisionFilters:
    """Which decisions are wanted; None wants any.

    Attributes:
        action: `"allow"`, `"review"` or `"block"`.
        route: `"champion"`, `"canary"` or `"fallback"`.
        version: Model version, such as `"fraud/2"`, or `"rules"`.
        customer: Key of the customer.
        terminal: Key of the terminal.
        day: A day of event time, such as `"2018-07-04"`.
    """

    action: str | None = None
    route: str | None = None
    version: str | None = None
    customer: str | None = None
    terminal: str | None = None
    day: str | None = None

    @classmethod
    def read(cls, values: Mapping[str, str]) -> "DecisionFilters":
        """Reads the filters of a query; an empty text filters nothing, an unknown name is left alone.

        Raises:
            InvalidInput: If a value can be none of its kind.

        Example:
            >>> DecisionFilters.read({"action": "block", "route": ""})
            DecisionFilters(action='block', route=None, version=None, customer=None, terminal=None, day=None)
        """
        names = [field.name for field in dataclasses.fields(cls)]
        given = {name: values[name].strip() for name in names if values.get(name, "").strip()}
        for name, allowed in (("action", ACTIONS), ("route", ROUTES)):
            if name in given and given[name] not in allowed:
                raise InvalidInput(name, given[name], f"be one of {', '.join(allowed)}")
        for name, value in given.items():
            if len(value) > _LONGEST or not value.isprintable():
                raise InvalidInput(name, value, f"be at most {_LONGEST} printable signs")
        if "day" in given:
            _span(given["day"])
        return cls(**given)

    @property
    def given(self) -> dict[str, str]:
        """The filters that are set, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def condition(self) -> "pl.Expr | None":
        """Returns the filters as an expression over the columns of the log; None where nothing is filtered."""
        import polars as pl

        columns = {"version": "model_version", "customer": "customer_id", "terminal": "terminal_id"}
        parts = [pl.col(columns.get(name, name)) == value for name, value in self.given.items() if name != "day"]
        if self.day is not None:
            start, end = (pl.lit(moment).cast(pl.Datetime("us", "UTC")) for moment in _span(self.day))
            parts += [pl.col("event_time") >= start, pl.col("event_time") < end]
        return pl.all_horizontal(parts) if parts else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecisionRow:
    """One decision of a list; fields as in `vitok.Decision`.

    Attributes:
        label: What became of it: 1.0 fraud, 0.0 honest, None where that is not known yet.
    """

    decision_id: str
    request_id: str
    event_time: int
    customer: str
    terminal: str
    amount: float
    probability: float
    action: str
    route: str
    version: str
    label: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecisionsPage:
    """A page of decisions, newest first.

    Attributes:
        filters: What was asked for.
        page: Number of the page, from 1.
        pages: How many can be turned to.
        total: How many decisions match.
        rows: The decisions of this page.
        versions: Versions that can be filtered by.
    """

    filters: DecisionFilters
    page: int
    pages: int
    total: int
    rows: tuple[DecisionRow, ...]
    versions: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{count(self.total)} decisions, page {self.page} of {self.pages}"]
        lines += [
            f"{exact_time(row.event_time)}  {row.action:<6}  {share(row.probability):>8}  {row.amount:>10.2f}"
            f"  {row.version:<9}  {row.decision_id}"
            for row in self.rows
        ]
        return "\n".join(lines)


def decisions_page(home: Path, filters: DecisionFilters | None = None, *, page: int = 1) -> DecisionsPage:
    """Reads a page of the newest decisions.

    Args:
        home: Folder of everything vitok writes.
        filters: Which decisions; all by default.
        page: Number of the page, from 1.

    Raises:
        InvalidInput: If the page is below 1.
        NotFound: If there are fewer pages.
    """
    wanted = filters or DecisionFilters()
    if page < 1:
        raise InvalidInput("page", page, "be at least 1")
    if page > MOST_PAGES:
        raise NotFound("page", page, [f"pages 1 to {MOST_PAGES}; a filter, such as a day, shows older decisions"])
    versions = (*(version.name for version in reversed(stores.state(home).versions)), "rules")
    folder = stores.logs(home)
    found: list[dict[str, Any]] = []
    total = 0
    if folder is not None:
        found, total = newest(folder / "decisions", _COLUMNS, wanted.condition(), skip=(page - 1) * ROWS, most=ROWS)
    pages = min(MOST_PAGES, max(1, math.ceil(total / ROWS)))
    if page > pages:
        raise NotFound("page", page, [f"pages 1 to {pages}"])
    known = _latest(folder, [row["request_id"] for row in found]) if folder is not None and found else {}
    rows = tuple(_row(row, known) for row in found)
    return DecisionsPage(filters=wanted, page=page, pages=pages, total=total, rows=rows, versions=versions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSeen:
    """A feature as a decision saw it, and where that lies in the reference of its version.

    Attributes:
        name: Name of the feature.
        value: What the model saw; NaN where there was none.
        low: Share of the reference (rows that have a value) below the value's bin, or None without a reference.
        high: Share of the reference up to the end of that bin, or None.
        place: The same in words.
        reason: What it did to the log-odds of fraud, or None where it is not among the main reasons.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    place: str
    reason: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionCost:
    """An action that the policy could take, with what it was expected to cost; NaN where no model answered."""

    action: str
    expected: float
    taken: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tier:
    """Probabilities in `[low, high)` for which the policy takes an action at the amount of the decision."""

    action: str
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutcomeSeen:
    """An outcome of the request; times in microseconds.

    Attributes:
        value: 1.0 fraud, 0.0 honest.
        event_time: When it became true.
        ingest_time: When vitok learned of it.
        source: Who said so.
        supersedes: Whether it takes an earlier one back.
    """

    value: float
    event_time: int
    ingest_time: int
    source: str
    supersedes: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecisionStory:
    """Everything that made one decision, and what came of it.

    Attributes:
        decision: The decision as it stands in the log.
        features: What the model saw, the main reasons first.
        reasons: The main reasons: (feature, change of the log-odds), largest first.
        no_reasons: Why there are none, in words; empty where there are.
        tiers: What the policy does at this amount, by probability; empty where rules answered.
        costs: What each action was expected to cost; empty where rules answered.
        pass_through: Probability with which the policy lets a block pass, or None where rules answered.
        outcomes: What became known, in the order in which it was learned; the last counts.
    """

    decision: Decision
    features: tuple[FeatureSeen, ...]
    reasons: tuple[tuple[str, float], ...]
    no_reasons: str
    tiers: tuple[Tier, ...]
    costs: tuple[ActionCost, ...]
    pass_through: float | None
    outcomes: tuple[OutcomeSeen, ...]

    @property
    def amount(self) -> float:
        """The amount that was decided on."""
        return float(self.decision.request.get("amount") or 0.0)

    @property
    def outcome(self) -> OutcomeSeen | None:
        """The outcome that counts, or None while nothing is known."""
        return self.outcomes[-1] if self.outcomes else None

    def __str__(self) -> str:
        made = self.decision
        lines = [
            f"{made.decision_id}: {made.action} at {exact_time(made.event_time)}, {made.model_version}",
            f"probability {share(made.probability)}, amount {self.amount:.2f}, route {made.route}: {made.route_reason}",
        ]
        lines += [f"  {name:<28} {change:+.3f}" for name, change in self.reasons]
        outcome = self.outcome
        lines.append(
            "outcome not known yet" if outcome is None else f"outcome {'fraud' if outcome.value else 'honest'}"
        )
        return "\n".join(lines)


def decision_story(home: Path, decision_id: str) -> DecisionStory:
    """Reads everything about one decision.

    Args:
        home: Folder of everything vitok writes.
        decision_id: UUID as text.

    Raises:
        InvalidInput: If the id is no UUID.
        NotFound: If there is no such decision.
    """
    folder = stores.logs(home)
    if folder is None:
        raise NotFound("decision", decision_id)
    made = decisions.find(folder / "decisions", decision_id=decision_id)
    if made is None:
        raise NotFound("decision", decision_id, ["the ids on the page of decisions"])
    version = _version(home, made.model_version)
    found, no_reasons = _reasons(home, made, version)
    profile = stores.profile(home, version) if version is not None else None
    policy = stores.policy(home, version) if version is not None else None
    if policy is not None:
        policy = policy_as_logged(policy, made.policy_version)
    if policy is not None and policy.version != made.policy_version:
        policy = None
    changes = dict(found)
    seen = [_seen(name, value, profile, changes.get(name)) for name, value in made.features.items()]
    seen.sort(key=lambda feature: -abs(feature.reason or 0.0))
    amount = float(made.request.get("amount") or 0.0)
    return DecisionStory(
        decision=made,
        features=tuple(seen),
        reasons=found,
        no_reasons=no_reasons,
        tiers=() if policy is None else tiers_of(policy, amount),
        costs=() if policy is None else _costs(policy, made, amount),
        pass_through=None if policy is None else policy.pass_through,
        outcomes=_outcomes(folder, [made.request_id]).get(made.request_id, ()),
    )


def _version(home: Path, name: str) -> Version | None:
    number = stores.number_of(name)
    versions = stores.state(home).versions
    return versions[number - 1] if number is not None and 1 <= number <= len(versions) else None


def _reasons(home: Path, made: Decision, version: Version | None) -> tuple[tuple[tuple[str, float], ...], str]:
    if version is None:
        return (), "Rules answered, which weigh nothing up."
    try:
        found = _trees(home, version)
    except NotFound as error:
        return (), str(error)
    if found is None:
        return (), "The model is no set of trees, so what each feature did to the score cannot be told."
    names, paths = found
    row = np.array([[made.features.get(name, np.nan) for name in names]], np.float32)
    parts = paths.contributions(row)[0]
    largest = np.argsort(-np.abs(parts))[:_MOST_REASONS]
    return tuple((names[at], round(float(parts[at]), 4)) for at in largest.tolist()), ""


@functools.lru_cache(maxsize=_KEPT_TREES)
def _trees(home: Path, version: Version) -> tuple[tuple[str, ...], TreePaths] | None:
    package = stores.package(home, version)
    if "model.txt" not in package or "signature.json" not in package:
        return None
    return tuple(package.json("signature.json")["inputs"]), TreePaths.of_lightgbm(package.text("model.txt"))


def _seen(name: str, value: float, profile: ReferenceProfile | None, reason: float | None) -> FeatureSeen:
    low, high, place = None, None, ""
    if profile is not None and name in profile.columns:
        at = profile.columns.index(name)
        low, high, place = position(profile, at, value)
    return FeatureSeen(name=name, value=value, low=low, high=high, place=place, reason=reason)


def position(profile: ReferenceProfile, column: int, value: float) -> tuple[float | None, float | None, str]:
    """Says where a value lies among the rows of a reference that have one.

    Returns:
        Share of them below its bin, share up to its end, and the place in words; None, None where it has no place.
    """
    counts = profile.counts[column]
    n_null, n_valued = int(counts[0]), int(counts[1:].sum())
    if math.isnan(value):
        return None, None, f"no value; {share(n_null / profile.n)} of the reference had none"
    if not n_valued:
        return None, None, "the reference never had a value"
    at = int(np.argmax(profile.edges[column].count([value])))
    below = int(counts[1:at].sum()) / n_valued
    upto = below + int(counts[at]) / n_valued
    if not counts[at]:
        place = "the reference has none like it"
    elif upto - below >= 0.2:
        place = f"like {share(upto - below)} of the reference"
    elif below >= 0.5:
        place = f"above {share(round(below, 3))}"
    else:
        place = f"below {share(round(1 - upto, 3))}"
    return below, upto, place


def tiers_of(policy: TierPolicy, amount: float) -> tuple[Tier, ...]:
    """Returns what a policy does at an amount, from the smallest probability to the largest."""
    # The policy itself is asked over a fine grid, so that this page can never tell another rule than the one in force.
    grid = np.concatenate(([0.0], np.geomspace(1e-5, 1.0, 2_001)))
    acting = dataclasses.replace(policy, pass_through=0.0)
    actions = acting.decide(grid, np.full(len(grid), amount), [""] * len(grid)).actions
    starts = [0, *(row for row in range(1, len(grid)) if actions[row] != actions[row - 1])]
    ends = [*(float(grid[row]) for row in starts[1:]), 1.0]
    return tuple(
        Tier(action=actions[row], low=float(grid[row]), high=end) for row, end in zip(starts, ends, strict=True)
    )


def _costs(policy: TierPolicy, made: Decision, amount: float) -> tuple[ActionCost, ...]:
    expected = policy.costs.expected(np.array([made.probability]), np.array([amount]))[:, 0]
    expected[1] += policy.review_price
    return tuple(
        ActionCost(action=action, expected=float(cost), taken=action == made.action)
        for action, cost in zip(ACTIONS, expected, strict=True)
    )


def _row(row: Mapping[str, Any], known: Mapping[str, float]) -> DecisionRow:
    return DecisionRow(
        decision_id=row["decision_id"],
        request_id=row["request_id"],
        event_time=stores.microseconds(row["event_time"]),
        customer=row["customer_id"],
        terminal=row["terminal_id"],
        amount=row["amount"],
        probability=row["probability"],
        action=row["action"],
        route=row["route"],
        version=row["model_version"],
        label=known.get(row["request_id"]),
    )


def _outcomes(folder: Path, requests: list[str]) -> dict[str, tuple[OutcomeSeen, ...]]:
    import polars as pl

    columns = ("request_id", "value", "event_time", "ingest_time", "source", "supersedes")
    theirs = (pl.col("kind") == OUTCOME_KIND) & pl.col("request_id").is_in(requests)
    rows, _ = taken_rows(folder / "outcomes", columns, one_in=1, until=_WHOLE, condition=theirs)
    if rows is None:
        return {}
    rows = rows.sort("ingest_time", maintain_order=True)
    # A repeated delivery differs in nothing but the time it was learned, and says nothing new.
    rows = rows.unique(["request_id", "value", "event_time", "source", "supersedes"], keep="first", maintain_order=True)
    found: dict[str, list[OutcomeSeen]] = {}
    for row in rows.rows(named=True):
        seen = OutcomeSeen(
            value=row["value"],
            event_time=stores.microseconds(row["event_time"]),
            ingest_time=stores.microseconds(row["ingest_time"]),
            source=row["source"],
            supersedes=row["supersedes"],
        )
        found.setdefault(row["request_id"], []).append(seen)
    return {request: tuple(seen) for request, seen in found.items()}


def _latest(folder: Path, requests: list[str]) -> dict[str, float]:
    return {request: seen[-1].value for request, seen in _outcomes(folder, requests).items()}


def _span(text: str) -> tuple[int, int]:
    try:
        start = parse_time(text)
    except InvalidInput:
        start = -1
    if start % DAY or len(text) != 10:
        raise InvalidInput("day", text, "be a day such as 2018-07-04")
    return start, start + DAY
