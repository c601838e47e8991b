"""Decisions taken again: one of them, which must come out as it stands in the log, or a period by another version.

A system says how: how a version answers rows of the log, and what an action costs once the truth is known. What
follows from that is the same for all systems, and is done here.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from vitok.clock import DAY, isoformat
from vitok.decision import Decision
from vitok.decisions.label_view import join, labels
from vitok.decisions.reading import find, read
from vitok.decisions.selection import HIDING, label_weights
from vitok.errors import InvalidInput, NotFound
from vitok.stats.off_policy import OffPolicyEstimate, doubly_robust, ips, snips

if TYPE_CHECKING:
    import polars as pl

_SAME = 1e-12


@dataclass(frozen=True, kw_only=True)
class Recomputed:
    """What a decision comes to when it is taken again.

    Attributes:
        fields: By field of the log; fields left out were not computed.
        left_out: Fields that could not be computed, and why.
    """

    fields: Mapping[str, str | float | None]
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A field that came out otherwise.

    Attributes:
        field: Its name in the log.
        logged: What stands there.
        recomputed: What came out.
    """

    field: str
    logged: str | float | None
    recomputed: str | float | None


@dataclass(frozen=True, kw_only=True)
class ReplayedDecision:
    """One decision, taken again.

    Attributes:
        decision: As it stands in the log.
        compared: The fields that were computed again.
        differences: Those that came out otherwise; there should be none.
        left_out: Fields that could not be computed again, and why.
    """

    decision: Decision
    compared: tuple[str, ...]
    differences: tuple[Difference, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Returns the comparison as lines."""
        made = self.decision
        lines = [
            f"{made.decision_id}: request {made.request_id} of {isoformat(made.event_time)}, {made.model_version}, "
            f"{made.policy_version}, {made.route}: {made.action}",
        ]
        lines += [f"{one.field}: logged {one.logged}, recomputed {one.recomputed}" for one in self.differences]
        lines += [f"{name}: not computed, {why}" for name, why in self.left_out.items()]
        n = len(self.differences)
        fields = ", ".join(self.compared)
        lines.append(f"no difference in {fields}" if not n else f"{n} of {len(self.compared)} fields differ")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns it ready for JSON."""
        return {
            "decision_id": self.decision.decision_id,
            "model_version": self.decision.model_version,
            "policy_version": self.decision.policy_version,
            "compared": list(self.compared),
            "differences": [
                {"field": one.field, "logged": _finite(one.logged), "recomputed": _finite(one.recomputed)}
                for one in self.differences
            ],
            "left_out": dict(self.left_out),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Rescored:
    """How a version answers n rows of the log.

    Attributes:
        action: n texts: what it would do, without its own dice.
        probability: Shape (n,): its calibrated probability of what the labels say; NaN where it has none.
    """

    action: Sequence[str]
    probability: npt.NDArray[np.float64]


class Replayable(Protocol):
    """A system whose decisions can be taken again."""

    def recompute(self, decision: Decision) -> Recomputed:
        """Takes one decision again, from its record and the versions that it names."""
        ...

    def rescore(self, rows: "pl.DataFrame", version: str) -> Rescored:
        """Answers rows, as `read` gives them, with a version."""
        ...

    def cost(
        self, rows: "pl.DataFrame", action: Sequence[str], label: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Returns what actions cost where the labels are known, linear in the label: of a probability the expectation.

        Args:
            rows: n rows, as `read` gives them.
            action: n texts.
            label: Shape (n,); NaN where it is not known, which makes the cost NaN.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ReplayedPeriod:
    """A period, answered by another version.

    Attributes:
        version: The version that was asked.
        since: Event time of the first row, in microseconds.
        until: Event time at which the period ends, in microseconds.
        n: Decisions of the period.
        changed: How many change from one action to another, most first.
        n_labelled: Decisions with a label.
        n_unlabelled: Decisions that could have one and have none yet: the estimates leave them out.
        n_unsupported: Decisions whose outcome nobody could have seen, by design: left out too.
        logged: What the decisions cost, each: by the logged policy, estimated from the same labels.
        candidate: The same of the other version: `ips`, `snips` and `dr`.
        difference: What the other version costs more, each, on the same rows: `ips`, `snips` and `dr`.
    """

    version: str
    since: int
    until: int
    n: int
    changed: tuple[tuple[str, str, int], ...]
    n_labelled: int
    n_unlabelled: int
    n_unsupported: int
    logged: OffPolicyEstimate
    candidate: tuple[OffPolicyEstimate, ...]
    difference: tuple[OffPolicyEstimate, ...]

    @property
    def n_changed(self) -> int:
        """Decisions whose action changes."""
        return sum(n for _, _, n in self.changed)

    def __str__(self) -> str:
        """Returns the comparison as lines."""
        share = f" ({100 * self.n_changed / self.n:.2f} %)" if self.n else ""
        lines = [
            f"{self.n:,} decisions from {isoformat(self.since)} to {isoformat(self.until)}, answered by {self.version}",
            f"{self.n_changed:,} actions change{share}",
            *(f"  {before} to {after}: {n:,}" for before, after, n in self.changed),
            f"{self.n_labelled:,} have a label; left out are {self.n_unlabelled:,} that have none yet "
            f"and {self.n_unsupported:,} that cannot have one",
            f"logged cost a decision: {self.logged}",
            *(f"candidate cost a decision: {one}" for one in self.candidate),
            *(f"difference: {one}" for one in self.difference),
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns it ready for JSON."""
        return {
            "version": self.version,
            "since": isoformat(self.since),
            "until": isoformat(self.until),
            "n": self.n,
            "n_changed": self.n_changed,
            "changed": [{"from": before, "to": after, "n": n} for before, after, n in self.changed],
            "n_labelled": self.n_labelled,
            "n_unlabelled": self.n_unlabelled,
            "n_unsupported": self.n_unsupported,
            "logged": self.logged.to_dict(),
            "candidate": {one.name: one.to_dict() for one in self.candidate},
            "difference": {one.name: one.to_dict() for one in self.difference},
        }


def replay_decision(
    folder: str | Path, decision_id: str, recompute: Callable[[Decision], Recomputed]
) -> ReplayedDecision:
    """Takes one decision again and compares every field that was computed.

    Numbers are the same where they differ by no more than a 1e-12th, which is what another order of the same
    additions may leave; texts where they are equal.

    Args:
        folder: Folder of a log of decisions.
        decision_id: UUID as text.
        recompute: How the system takes it again.

    Raises:
        NotFound: If there is no log, no such decision, or a version that it names is not there any more.
        InvalidInput: If the id is no UUID, or what came out is no field of a decision.
    """
    found = find(folder, decision_id=decision_id)
    if found is None:
        raise NotFound("decision", decision_id, ["the ids in its log, as each answer shows them"])
    differences = []
    recomputed = recompute(found)
    fields = recomputed.fields
    for name, value in fields.items():
        if name.startswith("f_"):
            if name[2:] not in found.features:
                raise InvalidInput("recompute", name, "be a feature of the decision")
            logged: Any = found.features[name[2:]]
        elif name in Decision.__struct_fields__:
            logged = getattr(found, name)
        else:
            raise InvalidInput("recompute", name, "be a field of a decision")
        if not _same(logged, value):
            differences.append(Difference(field=name, logged=logged, recomputed=value))
    return ReplayedDecision(
        decision=found, compared=tuple(fields), differences=tuple(differences), left_out=recomputed.left_out
    )


def replay_period(
    logs: str | Path,
    system: Replayable,
    version: str,
    *,
    since: int,
    until: int,
    as_of: int,
    kind: str,
    hiding: Sequence[str] = HIDING,
    dice: tuple[str, str] = ("allow", "block"),
    confidence_level: float = 0.95,
) -> ReplayedPeriod:
    """Answers the decisions of a period with another version, and estimates from the labels what it would have cost.

    Once the truth about a decision is known, so is the cost of any action on it; what is missing are the truths that
    the logged actions hid. Each label therefore counts with one over the probability of seeing it
    (`vitok.decisions.label_weights`), and the doubly robust estimate fills in the logged probability of the rest.
    Two kinds of decisions are left out and counted: those without a label that could have one, as if they were like
    the labelled ones (choose a period whose labels have matured), and those whose action had no alternative and
    hides its outcome, for which nothing can be said without assumptions.

    Args:
        logs: The folder above both logs.
        system: How versions answer, and what actions cost.
        version: Which version.
        since: Event time of the first decision, in microseconds.
        until: Event time at which the period ends, in microseconds, exclusive.
        as_of: Labels known at this time, in microseconds, are used.
        kind: Which outcomes are the labels.
        hiding: Actions after which no outcome can be seen.
        dice: The two actions between which the logged policy threw dice, where a propensity is below 1. What it
            costs is the mean over its dice: those that were seen have all fallen on one side.
        confidence_level: Level of the intervals.

    Raises:
        NotFound: If there is no log, no decision in the period, or no such version.
    """
    top = Path(logs)
    rows = read(top / "decisions", since=since, until=until)
    if rows.is_empty():
        raise NotFound("decisions", f"from {isoformat(since)} to {isoformat(until)}")
    # A day more: event times may come from clocks that were ahead of the one that stamped the outcomes.
    known = labels(top / "outcomes", as_of=as_of, kind=kind, since=since - DAY) if (top / "outcomes").is_dir() else None
    label = np.full(rows.height, math.nan) if known is None else join(rows, known)["label"].to_numpy()
    rescored = system.rescore(rows, version)
    before = rows["action"].to_list()
    pairs = Counter((one, other) for one, other in zip(before, rescored.action, strict=True) if one != other)
    found = label_weights(rows, hiding=hiding)
    visible, known_label = found.weight > 0, np.isfinite(label)
    lacking = visible & ~known_label
    hidden_for_good = ~visible & (rows["propensity"].to_numpy() >= 1)
    kept = ~lacking & ~hidden_for_good
    weight = np.where(visible & known_label, found.weight, 0.0)[kept]
    propensity = rows["propensity"].to_numpy()
    other = [dice[1] if action == dice[0] else dice[0] for action in before]

    def both(truth: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
        """Returns what the logged policy and the version cost, by a truth or by a guess of it."""
        logged = propensity * system.cost(rows, before, truth)
        logged = logged + np.where(propensity < 1, (1 - propensity) * system.cost(rows, other, truth), 0.0)
        return [logged[kept], system.cost(rows, rescored.action, truth)[kept]]

    costs = both(label)
    # One guess judges both: what was believed of each decision when it was taken.
    guess = rows["probability"].to_numpy()
    usual = float(label[visible & known_label].mean()) if (visible & known_label).any() else 0.0
    guess = np.where(np.isfinite(guess), guess, usual)
    guesses = both(guess)
    difference, guessed = costs[1] - costs[0], guesses[1] - guesses[0]
    level = {"confidence_level": confidence_level}
    return ReplayedPeriod(
        version=version,
        since=since,
        until=until,
        n=rows.height,
        changed=tuple((one, other, n) for (one, other), n in pairs.most_common()),
        n_labelled=int(known_label.sum()),
        n_unlabelled=int(lacking.sum()),
        n_unsupported=found.n_unsupported,
        logged=snips(costs[0], weight, **level),
        candidate=(
            ips(costs[1], weight, **level),
            snips(costs[1], weight, **level),
            doubly_robust(costs[1], weight, guesses[1], guesses[1], **level),
        ),
        difference=(
            ips(difference, weight, **level),
            snips(difference, weight, **level),
            doubly_robust(difference, weight, guessed, guessed, **level),
        ),
    )


def _same(logged: Any, value: Any) -> bool:
    if isinstance(logged, float) and isinstance(value, int | float):
        if math.isnan(logged) or math.isnan(value):
            return math.isnan(logged) and math.isnan(value)
        return math.isclose(logged, value, rel_tol=_SAME, abs_tol=_SAME)
    return bool(logged == value)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
