"""The plan of a release: how it divides its error, and what it refuses to be."""

import dataclasses
import json

import pytest
from tests.loop.release_house import plan_of, watch

from vitok.errors import InvalidInput
from vitok.loop.release_plan import PlannedJudge, ReleasePlan, Step
from vitok.registry import Verdict, at_least, evaluate


def test_the_plan_divides_its_error_and_checks_its_order() -> None:
    plan = plan_of(shadow=watch, alpha=0.06)
    assert [plan.confidence_level(name) for name in ("shadow", "canary", "probation")] == pytest.approx([0.98] * 3)
    weighted = dataclasses.replace(plan, judges={**plan.judges, "canary": PlannedJudge(make=watch, weight=4.0)})
    assert weighted.confidence_level("canary") == pytest.approx(0.96)
    assert sum(1 - weighted.confidence_level(name) for name in weighted.judges) == pytest.approx(0.06)
    shadow, canary, _, full = plan.steps
    for steps, said in (
        ((), "at least one step"),
        ((canary, shadow), "in order"),
        ((full, full), "names of their own"),
        ((shadow, canary), "one full"),
        ((shadow, full, dataclasses.replace(full, name="again")), "one full"),
        ((dataclasses.replace(canary, share=0.6), plan.steps[2], full), "grow"),
        ((dataclasses.replace(canary, judges=("nobody",), accepts=()), full), "among those of the plan"),
        ((shadow, full), "watch a step each"),
    ):
        with pytest.raises(InvalidInput, match=said):
            ReleasePlan(steps=steps, judges=plan.judges)
    with pytest.raises(InvalidInput, match="alpha"):
        plan_of(alpha=0.5)
    with pytest.raises(InvalidInput, match="no_such"):
        plan.confidence_level("no_such")
    for changes in (
        {"kind": "canary", "share": 1.0},
        {"kind": "shadow", "share": 0.1},
        {"kind": "green", "share": 0.1},
        {"kind": "full", "share": 1.0, "least": -1},
        {"kind": "full", "share": 1.0, "least": 2, "longest": 1},
        {"kind": "full", "share": 1.0, "accepts": ("canary",)},
        {"kind": "full", "share": 1.0, "name": " "},
    ):
        with pytest.raises(InvalidInput):
            Step(**({"name": "x"} | changes))  # type: ignore[arg-type]


def test_a_pure_blue_green_release_gives_all_its_error_to_the_probation() -> None:
    plan = plan_of(shares=(), shadow_for=0)
    assert [step.kind for step in plan.steps] == ["full"]
    assert plan.confidence_level("probation") == pytest.approx(0.95)
    assert list(plan.judges) == ["probation"]


def test_a_plan_is_made_again_from_what_is_kept_of_it() -> None:
    def gate(*_: object) -> Verdict:
        return evaluate([at_least("average_precision", 0.6, 0.5)])

    plan = plan_of(shadow=watch, alpha=0.02)
    gated = (dataclasses.replace(plan.steps[0], gate=gate), *plan.steps[1:])
    plan = dataclasses.replace(plan, steps=gated)
    judges = dict.fromkeys(plan.judges, watch)
    again = ReleasePlan.kept(json.loads(json.dumps(plan.to_dict())), judges=judges, gate=gate)
    assert again.to_dict() == plan.to_dict()
    assert again.steps == plan.steps
    for given in ({"judges": judges}, {"judges": {}, "gate": gate}):
        with pytest.raises(InvalidInput):
            ReleasePlan.kept(plan.to_dict(), **given)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="be what to_dict returned"):
        ReleasePlan.kept({"steps": []}, judges=judges)
