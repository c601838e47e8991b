"""What decides: the versions with their evidence."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitok.console import stores
from vitok.console.block_reading import BlocksSeen, blocks
from vitok.console.wording import figure, interval, time
from vitok.errors import InvalidInput
from vitok.registry import Entry, Verdict, Version, model_card
from vitok.stats import Estimate
from vitok.systems.fraud.messages import SYSTEM

# In this order on every page; what a version measured besides comes after.
METRICS = ("average_precision", "auc", "card_precision_100", "calibration_error", "cost_per_decision", "brier")
LOWER_IS_BETTER = ("calibration_error", "cost_per_decision", "brier", "rules_cost_per_decision")
# What the page shows in a place of its own; the stage of a card is that of the day it was written.
_ELSEWHERE = ("stage", "registered", "package digest", "run")


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
        blocks: What is known of its blocks; None where nothing was ever decided.
        files: The files of its package with their sizes in bytes.
        reference: The period and size of its reference profile, in words, or empty.
    """

    seen: VersionSeen
    history: tuple[Entry, ...]
    card: tuple[CardSection, ...]
    policy: tuple[tuple[str, str], ...]
    blocks: BlocksSeen | None
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
        blocks=blocks(home, version.name),
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
