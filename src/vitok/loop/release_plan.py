"""A plan of a release: the steps from shadow to full traffic, what each waits for, and who judges it at which level.

A plan says what is to happen; `Releases` in `release_run` does it. Plans are made by the program, with its gates and
judges; what is kept of a release is which step it has reached, and what its judges have seen.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from vitok.clock import DAY, HOUR
from vitok.errors import InvalidInput
from vitok.loop.release_evidence import Look, Seen
from vitok.loop.releases import Judged
from vitok.monitoring.rules import duration_text
from vitok.registry import Verdict

StepKind = Literal["shadow", "canary", "full"]


class Judge(Protocol):
    """What a step is judged by: a `PairedJudge` or a `TrafficJudge`."""

    def take(self, look: Look, *, now: int) -> Judged:
        """Takes in what came since the look before, and says what it makes of everything so far."""
        ...

    def to_state(self) -> dict[str, Any]:
        """Returns all that was taken in, ready for JSON."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from such a state."""
        ...


@runtime_checkable
class CountsOnce(Protocol):
    """A judge that counts each id once, and whose ids are kept apart: to keep a look then costs what was new in it."""

    @property
    def ids(self) -> Mapping[str, Seen]:
        """The ids that were counted, by name."""
        ...

    def sums(self) -> dict[str, Any]:
        """Returns what `to_state` does without the ids."""
        ...

    def restore(self, state: Mapping[str, Any], *, ids: Mapping[str, Seen] | None = None) -> None:
        """Goes on from a state, with the ids where they are not in it."""
        ...


class MakeJudge(Protocol):
    """Makes a judge for two versions."""

    def __call__(self, *, candidate: str, incumbent: str, confidence_level: float) -> Judge:
        """Returns a judge that has seen nothing.

        Args:
            candidate: Version under judgement, such as `"fraud/2"`.
            incumbent: Version it is compared with.
            confidence_level: Level over all its looks, as the plan divides its error.
        """
        ...


Gate = Callable[[str, str, int], Verdict]
"""Is asked before a step, with the candidate, the incumbent and the present in microseconds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedJudge:
    """A judge of a plan.

    Attributes:
        make: Makes it.
        weight: Its part of the plan's error, against the weights of the other judges; above 0.
    """

    make: MakeJudge
    weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a release.

    Attributes:
        name: Such as `"canary 10 %"`; each step of a plan has its own.
        kind: `"shadow"`: it scores beside and never answers. `"canary"`: it answers a share. `"full"`: it answers
            everything, and the version before stays loaded and warm as long as the step lasts, so that the way back
            is one pointer move (blue-green).
        share: Share of the decisions of a canary, in (0, 1); 0 in the shadow, 1 at full.
        least: How long it lasts at least, in microseconds.
        least_decisions: How many decisions the candidate must have scored in it before it ends.
        longest: After how long an undecided step is given up, in microseconds; None for never.
        judges: Names of the judges that watch it; each may refuse at any look, which rolls back at once.
        accepts: Those of them that must have accepted before it ends; of the others "not refused" is enough.
        approvals: How many people must approve that it begins, besides who began the release and who asked for it.
        gate: Asked before it begins; None asks nothing.
    """

    name: str
    kind: StepKind
    share: float = 0.0
    least: int = 0
    least_decisions: int = 0
    longest: int | None = None
    judges: tuple[str, ...] = ()
    accepts: tuple[str, ...] = ()
    approvals: int = 0
    gate: Gate | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        expected = {"shadow": self.share == 0, "canary": 0 < self.share < 1, "full": self.share == 1}
        if self.kind not in expected:
            raise InvalidInput("step: kind", self.kind, f"be one of {', '.join(expected)}")
        if not expected[self.kind]:
            raise InvalidInput("step: share", self.share, "be 0 in the shadow, in (0, 1) in a canary, and 1 at full")
        if not self.name.strip():
            raise InvalidInput("step: name", self.name, "not be empty")
        for name in ("least", "least_decisions", "approvals"):
            if getattr(self, name) < 0:
                raise InvalidInput(f"step {self.name}: {name}", getattr(self, name), "be at least 0")
        if self.longest is not None and self.longest < self.least:
            raise InvalidInput(f"step {self.name}: longest", self.longest, f"be at least {self.least}, the least")
        if odd := sorted(set(self.accepts) - set(self.judges)):
            raise InvalidInput(f"step {self.name}: accepts", odd, "be among its judges")

    def to_dict(self) -> dict[str, Any]:
        """Returns what can be kept of it: of the gate only whether there is one."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        kept = {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
        return kept | {"gate": self.gate is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReleasePlan:
    """Steps, and the judges that watch them.

    The chance that a candidate which is no worse is rolled back by any judge at any look of any step is at most
    `alpha`: each judge gets `alpha` times its weight over the sum of the weights, and by the union bound the parts
    add up, however the judges depend on each other. A judge that watches several steps is one judge with one part and
    one memory, so a step more costs nothing: let the same judge go on through the canary. A verdict is final, so a
    judge that has accepted watches no more: a judge of its own watches the probation. What gates refuse before a
    release, and what a person ends, is no part of `alpha`.

    Attributes:
        steps: In order: at most one shadow, canaries of growing shares, and one full step.
        judges: By name.
        alpha: Chance of a false roll back of the whole plan, in (0, 0.5).

    Raises:
        InvalidInput: If the steps are not in such an order, or name a judge that is not there.

    Example:
        >>> from vitok.loop import RateRule, TrafficJudge
        >>> def watch(**versions):
        ...     return TrafficJudge(rates={"failed": RateRule(margin=0.01)}, **versions)
        >>> plan = ReleasePlan.of(shares=(0.01, 0.1, 0.5), canary=watch, probation=watch)
        >>> print(plan)
        shadow for 1d, then canary 1 % for 1h, then canary 10 % for 1h, then canary 50 % for 1h, then full for 3d
        >>> plan.confidence_level("canary")
        0.975
    """

    steps: tuple[Step, ...]
    judges: Mapping[str, PlannedJudge] = dataclasses.field(default_factory=dict)
    alpha: float = 0.05

    def __post_init__(self) -> None:
        """Checks order and names."""
        names, kinds = [step.name for step in self.steps], [step.kind for step in self.steps]
        if not self.steps:
            raise InvalidInput("plan: steps", (), "have at least one step")
        if len(set(names)) < len(names):
            raise InvalidInput("plan: steps", names, "have names of their own")
        order = sorted(kinds, key=("shadow", "canary", "full").index)
        if kinds != order or kinds.count("shadow") > 1 or kinds.count("full") != 1:
            raise InvalidInput("plan: steps", kinds, "be at most one shadow, any canaries, and one full, in order")
        shares = [step.share for step in self.steps]
        if sorted(set(shares)) != shares:
            raise InvalidInput("plan: shares", shares, "grow from step to step")
        if not 0 < self.alpha < 0.5:
            raise InvalidInput("plan: alpha", self.alpha, "be in (0, 0.5)")
        for name, judge in self.judges.items():
            if not 0 < judge.weight < float("inf"):
                raise InvalidInput(f"plan: weight of {name}", judge.weight, "be above 0")
        used = {name for step in self.steps for name in step.judges}
        if odd := sorted(used - set(self.judges)):
            raise InvalidInput("plan: judges", odd, f"be among those of the plan: {', '.join(self.judges) or 'none'}")
        if idle := sorted(set(self.judges) - used):
            raise InvalidInput("plan: judges", idle, "watch a step each", "Leave them out: they would take error away")

    @classmethod
    def of(
        cls,
        *,
        canary: MakeJudge,
        probation: MakeJudge,
        shadow: MakeJudge | None = None,
        shares: Sequence[float] = (0.01, 0.1, 0.5),
        least: int = HOUR,
        shadow_for: int = DAY,
        probation_for: int = 3 * DAY,
        least_decisions: int = 0,
        approvals: int = 0,
        alpha: float = 0.05,
    ) -> "ReleasePlan":
        """Makes the usual plan: shadow, canaries, and full with a probation.

        Args:
            canary: Makes the judge of all canaries; it must accept before full traffic.
            probation: Makes the judge of the probation.
            shadow: Makes the judge of the shadow, which must not refuse; None leaves the shadow unjudged.
            shares: Of the canaries, growing; none for a pure blue-green release.
            least: How long each canary lasts at least, in microseconds.
            shadow_for: How long the shadow lasts at least; 0 for no shadow.
            probation_for: How long the version before is kept warm.
            least_decisions: How many decisions each canary must have scored.
            approvals: How many people must approve the full traffic.
            alpha: Chance of a false roll back of the whole plan.
        """
        steps = [Step(name="shadow", kind="shadow", least=shadow_for, judges=("shadow",) if shadow else ())]
        for share in shares:
            steps.append(
                Step(
                    name=f"canary {100 * share:g} %",
                    kind="canary",
                    share=share,
                    least=least,
                    least_decisions=least_decisions,
                    judges=("canary",),
                    accepts=("canary",) if share == shares[-1] else (),
                )
            )
        steps.append(
            Step(name="full", kind="full", share=1, least=probation_for, judges=("probation",), approvals=approvals)
        )
        kept = tuple(steps if shadow_for else steps[1:])
        made = {"shadow": shadow, "canary": canary, "probation": probation}
        used = {name for step in kept for name in step.judges}
        judges = {name: PlannedJudge(make=make) for name, make in made.items() if make is not None and name in used}
        return cls(steps=kept, judges=judges, alpha=alpha)

    @classmethod
    def kept(
        cls, data: Mapping[str, Any], *, judges: Mapping[str, MakeJudge], gate: Gate | None = None
    ) -> "ReleasePlan":
        """Makes the plan again that a release was begun with, from what is kept of it.

        Args:
            data: What `to_dict` returned, such as `Release.plan`.
            judges: Makes the judges, by their names in the plan.
            gate: The gate of the steps that have one.

        Raises:
            InvalidInput: If a judge or a gate of it is not given, or a part is missing.
        """
        try:
            steps = [dict(step) for step in data["steps"]]
            if gate is None and any(step["gate"] for step in steps):
                raise InvalidInput("gate", None, "be given where a step has one")
            for step in steps:
                step |= {name: tuple(step[name]) for name in ("judges", "accepts")}
                step["gate"] = gate if step["gate"] else None
            made = {name: PlannedJudge(make=judges[name], weight=weight) for name, weight in data["judges"].items()}
            return cls(steps=tuple(Step(**step) for step in steps), judges=made, alpha=data["alpha"])
        except (KeyError, TypeError) as error:
            raise InvalidInput(
                "plan", sorted(data), f"be what to_dict returned, and judged as here ({error})"
            ) from None

    def confidence_level(self, judge: str) -> float:
        """Returns the level that a judge works at: 1 less its part of the plan's error.

        Raises:
            InvalidInput: If there is no such judge.
        """
        if judge not in self.judges:
            raise InvalidInput("judge", judge, f"be one of {', '.join(self.judges)}")
        total = sum(one.weight for one in self.judges.values())
        return 1 - self.alpha * self.judges[judge].weight / total

    def to_dict(self) -> dict[str, Any]:
        """Returns what can be kept of it; a release goes on only with a plan that is the same in this."""
        weights = {name: judge.weight for name, judge in self.judges.items()}
        return {"steps": [step.to_dict() for step in self.steps], "judges": weights, "alpha": self.alpha}

    def __str__(self) -> str:
        return ", then ".join(f"{step.name} for {duration_text(step.least)}" for step in self.steps)
