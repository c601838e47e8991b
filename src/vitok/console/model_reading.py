"""What decides: the features that are declared, and the versions with their evidence."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitok.clock import duration
from vitok.console import stores
from vitok.console.wording import figure, interval, length, spoken, time
from vitok.errors import InvalidInput
from vitok.features import FeatureSet, OnDemand, View, Window
from vitok.monitoring import ReferenceProfile
from vitok.registry import Entry, Verdict, Version, model_card
from vitok.stats import Estimate
from vitok.systems.fraud.features import CALENDAR, FEATURES
from vitok.systems.fraud.messages import SYSTEM

# In this order on every page; what a version measured besides comes after.
METRICS = ("average_precision", "auc", "card_precision_100", "calibration_error", "cost_per_decision", "brier")
LOWER_IS_BETTER = ("calibration_error", "cost_per_decision", "brier", "rules_cost_per_decision")
# What the page shows in a place of its own; the stage of a card is that of the day it was written.
_ELSEWHERE = ("stage", "registered", "package digest", "run")
_AGGREGATES = {
    "count": "How many {source}",
    "sum": "Sum of {column} over {source}",
    "mean": "Mean of {column} over {source}",
    "distinct": "How many different values of {column} in {source}",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSeenNow:
    """One feature, as it is declared and as the reference of the version in Production has it.

    Attributes:
        name: Name of the feature.
        meaning: What it is, in words.
        window: Length of its window, or empty.
        tail: How the end of the window moves, or empty.
        median: Median of the reference; NaN where it is not known.
        null_share: Share of the reference without a value; NaN where it is not known.
        watched: Whether drift is looked for in it.
    """

    name: str
    meaning: str
    window: str
    tail: str
    median: float
    null_share: float
    watched: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureGroup:
    """Features declared together.

    Attributes:
        name: Name of the view, `"request"`, or `"on demand"`.
        title: What the group is, in words.
        owner: Who answers for it, or empty.
        description: What it says, or empty.
        entity: Whom the features are about, with the key, or empty.
        source: Which events are aggregated, or empty.
        rule: What else holds for all of them, in words, or empty.
        features: The features.
    """

    name: str
    title: str
    owner: str
    description: str
    entity: str
    source: str
    rule: str
    features: tuple[FeatureSeenNow, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureUse:
    """Whether a version uses the features as they are declared now.

    Attributes:
        version: The version.
        features_version: Hash of the definitions that it was fitted on.
        inputs: How many of them it takes.
        current: Whether these are the definitions that are declared now.
    """

    version: Version
    features_version: str
    inputs: int
    current: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesSeen:
    """The declared features and who uses them.

    Attributes:
        version: Hash of the definitions.
        groups: The features by where they come from.
        uses: Every version, newest first.
        reference: Version whose reference the medians are of, or None.
    """

    version: str
    groups: tuple[FeatureGroup, ...]
    uses: tuple[FeatureUse, ...]
    reference: str | None

    @property
    def count(self) -> int:
        """How many features there are."""
        return sum(len(group.features) for group in self.groups)

    def __str__(self) -> str:
        lines = [f"{self.count} features, definitions {self.version}"]
        lines += [
            f"  {feature.name:<28} {feature.meaning}" + (f", {feature.window}" if feature.window else "")
            for group in self.groups
            for feature in group.features
        ]
        return "\n".join(lines)


def features(home: Path) -> FeaturesSeen:
    """Reads the declared features, and which versions use them."""
    state = stores.state(home)
    reference = None if state.production is None else state.version(state.production)
    profile = None if reference is None else stores.profile(home, reference)
    uses = []
    for version in reversed(state.versions):
        declared = stores.document(home, version, "features.json") or {}
        signature = stores.document(home, version, "signature.json") or {}
        hashed = str(declared.get("version", ""))
        uses.append(
            FeatureUse(
                version=version,
                features_version=hashed,
                inputs=len(signature.get("inputs", ())),
                current=hashed == FEATURES.version,
            )
        )
    return FeaturesSeen(
        version=FEATURES.version,
        groups=_groups(FEATURES, profile),
        uses=tuple(uses),
        reference=reference.name if profile is not None and reference is not None else None,
    )


def _groups(declared: FeatureSet, profile: ReferenceProfile | None) -> tuple[FeatureGroup, ...]:
    groups = []
    if declared.request:
        items = tuple(_feature(name, "As it comes with the request", "", "", profile) for name in declared.request)
        groups.append(_group("request", "From the request", items))
    groups += [_view(view, profile) for view in declared.views]
    if declared.on_demand:
        computed = tuple(_feature(item.name, _computed(item), "", "", profile) for item in declared.on_demand)
        groups.append(_group("on demand", "Computed from the others when asked", computed))
    return tuple(groups)


def _group(name: str, title: str, items: tuple[FeatureSeenNow, ...]) -> FeatureGroup:
    return FeatureGroup(name=name, title=title, owner="", description="", entity="", source="", rule="", features=items)


def _view(view: View, profile: ReferenceProfile | None) -> FeatureGroup:
    items = []
    names = iter(view.feature_names)
    for aggregation in view.aggregations:
        meaning = _AGGREGATES[aggregation.kind].format(source=view.source.name, column=aggregation.column)
        for span in aggregation.over:
            window = Window.of(span, exact=view.exact)
            tail = "exact" if window.hop == 1 else f"in steps of {length(window.hop)}"
            items.append(_feature(next(names), meaning, length(duration(span)), tail, profile))
    included = "The event that asks is part of its own windows." if view.include_current else ""
    return FeatureGroup(
        name=view.name,
        title=spoken(view.name).capitalize(),
        owner=view.owner,
        description=view.description,
        entity=f"{view.entity.name} ({view.entity.key})",
        source=f"{view.source.name}, by {spoken(view.source.event_time)}",
        rule=included or "The event that asks is not part of its own windows.",
        features=tuple(items),
    )


def _computed(item: OnDemand) -> str:
    text = (item.function.__doc__ or "").strip().partition("\n")[0]
    return f"{text} From {', '.join(spoken(name) for name in item.inputs)}.".strip()


def _feature(name: str, meaning: str, window: str, tail: str, profile: ReferenceProfile | None) -> FeatureSeenNow:
    median, null_share = math.nan, math.nan
    if profile is not None and name in profile.columns:
        at = profile.columns.index(name)
        counts = profile.counts[at]
        null_share = int(counts[0]) / profile.n
        valued = counts[1:].cumsum()
        if valued[-1]:
            median = profile.edges[at].centers[1 + int((valued >= valued[-1] / 2).argmax())]
    return FeatureSeenNow(
        name=name,
        meaning=meaning,
        window=window,
        tail=tail,
        median=median,
        null_share=null_share,
        watched=name not in CALENDAR,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VersionSeen:
    """A version with what was measured of it.

    Attributes:
        version: Where it stands.
        role: What it does now: `"serves"`, `"canary"`, or empty.
        metrics: Name to estimate, in the order in which they are shown.
        verdict: What its latest gate said, also where that no longer holds, or None.
        origin: Why it was made.
        actor: Who made it.
    """

    version: Version
    role: str
    metrics: Mapping[str, Estimate]
    verdict: Verdict | None
    origin: str
    actor: str

    def __str__(self) -> str:
        found = self.metrics.get("average_precision")
        quality = "" if found is None else f", average precision {figure(found.value)}"
        return f"{self.version}{quality}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VersionsSeen:
    """All versions, newest first."""

    versions: tuple[VersionSeen, ...]

    def __str__(self) -> str:
        return "\n".join(str(item) for item in self.versions) or "no version was registered yet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardSection:
    """A section of a model card.

    Attributes:
        title: Its heading.
        items: Its points: (name, text); the name is empty for plain text.
    """

    title: str
    items: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VersionStory:
    """Everything about one version.

    Attributes:
        seen: The version and its metrics.
        history: What happened to it, oldest first.
        card: Its model card.
        policy: What its policy does, in words, by name.
        files: The files of its package with their sizes in bytes.
        reference: The period and size of its reference profile, in words, or empty.
    """

    seen: VersionSeen
    history: tuple[Entry, ...]
    card: tuple[CardSection, ...]
    policy: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, int], ...]
    reference: str

    def __str__(self) -> str:
        lines = [str(self.seen), *(f"  {estimate}" for estimate in self.seen.metrics.values())]
        return "\n".join(lines + [f"  {entry}" for entry in self.history])


def versions(home: Path) -> VersionsSeen:
    """Reads all versions with their stages, metrics and gates."""
    with stores.ledger(home) as ledger:
        if ledger is None:
            return VersionsSeen(versions=())
        state = ledger.state(SYSTEM)
        history = ledger.history(SYSTEM)
    roles = {state.production: "serves", state.canary: "canary"}
    return VersionsSeen(
        versions=tuple(
            _version(home, version, roles.get(version.version, ""), history) for version in reversed(state.versions)
        )
    )


def version_story(home: Path, number: int) -> VersionStory:
    """Reads everything about one version.

    Raises:
        NotFound: If there is no such version.
        InvalidInput: If the number is below 1.
    """
    if number < 1:
        raise InvalidInput("version", number, "be at least 1")
    state = stores.state(home)
    version = state.version(number)
    with stores.ledger(home) as ledger:
        history = () if ledger is None else ledger.history(SYSTEM)
    roles = {state.production: "serves", state.canary: "canary"}
    seen = _version(home, version, roles.get(number, ""), history)
    profile = stores.profile(home, version)
    package = stores.package(home, version)
    return VersionStory(
        seen=seen,
        history=tuple(entry for entry in history if entry.version == number),
        card=_card(home, seen),
        policy=_policy(home, version),
        files=tuple((name, entry.size) for name, entry in sorted(package.files.items())),
        reference="" if profile is None else f"{profile.n:,} rows, {time(profile.start)} to {time(profile.end)}",
    )


def _version(home: Path, version: Version, role: str, history: tuple[Entry, ...]) -> VersionSeen:
    ours = [entry for entry in history if entry.version == version.version]
    made = next((entry for entry in ours if entry.kind == "registered"), None)
    gate = next((entry for entry in reversed(ours) if entry.kind == "gate"), None)
    measured = stores.document(home, version, "metrics.json") or {}
    order = [*METRICS, *(name for name in measured if name not in METRICS)]
    return VersionSeen(
        version=version,
        role=role,
        metrics={name: _estimate(name, measured[name]) for name in order if name in measured},
        verdict=None if gate is None else Verdict.from_dict(gate.details),
        origin="" if made is None else made.reason,
        actor="" if made is None else made.actor,
    )


def _estimate(name: str, data: Any) -> Estimate:
    def number(key: str) -> float:
        found = data.get(key)
        return math.nan if found is None else float(found)

    return Estimate(
        name=str(data.get("name", name)),
        value=number("value"),
        lower=number("lower"),
        upper=number("upper"),
        n_obs=int(data.get("n_obs") or 0),
        confidence_level=float(data.get("confidence_level") or 0.95),
        definition=str(data.get("definition", "")),
    )


def _policy(home: Path, version: Version) -> tuple[tuple[str, str], ...]:
    policy = stores.policy(home, version)
    if policy is None:
        return ()
    costs = policy.costs
    return (
        ("a false block costs", figure(costs.false_block)),
        ("a review costs", figure(costs.review)),
        ("a review finds", f"{100 * costs.reviewer_recall:g} % of the frauds it sees"),
        ("a review is charged above its cost", figure(policy.review_price)),
        ("of the blocks, passed at random", f"{100 * policy.pass_through:g} %"),
        ("policy version", policy.version),
    )


def _card(home: Path, seen: VersionSeen) -> tuple[CardSection, ...]:
    version = seen.version
    text = None
    if version.run_id is not None and version.run_id.isalnum():
        path = home / "mlartifacts" / version.run_id / "artifacts" / "card.md"
        if path.is_file():
            text = path.read_text(encoding="utf-8")
    if text is None:
        text = model_card(version, metrics=dict(seen.metrics), gate=seen.verdict).markdown()
    return _sections(text)


def _sections(markdown: str) -> tuple[CardSection, ...]:
    sections = []
    for part in markdown.split("\n## ")[1:]:
        title, _, body = part.partition("\n")
        # Tables and the gate have places of their own on the page.
        if title.strip() in ("Quantitative analyses", "Metrics"):
            continue
        items = []
        for line in body.splitlines():
            if line.startswith("- "):
                name, _, text = line[2:].partition(": ")
                if name not in _ELSEWHERE:
                    items.append((name, text) if text else ("", name))
            elif line.strip():
                items.append(("", line.strip()))
        sections.append(CardSection(title=title.strip(), items=tuple(items)))
    return tuple(sections)


def measured(estimate: Estimate) -> str:
    """Writes a value with its interval."""
    found = interval(estimate.lower, estimate.upper)
    return figure(estimate.value) + (f" ({found})" if found else "")
