"""Releases by plan: steps, exits, orders of people, and several processes."""

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.loop.release_house import GOOD, House, Traffic, furnish, plan_of

from vitok.errors import Conflict, GateRefused, InvalidInput, NotFound
from vitok.loop import RateRule, Releases, TrafficJudge, push, roll_back
from vitok.loop.release_evidence import Look
from vitok.loop.release_plan import PlannedJudge
from vitok.registry import Check, Verdict, at_least, evaluate
from vitok.stats import Estimate


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    found = furnish(tmp_path, plan_of(), Traffic())
    yield found
    found.close()


def through(house: House, *, until: int = 200, every: int = 2) -> list[tuple[int, str]]:
    """Ticks on, and returns when each step began and how it ended."""
    story: list[tuple[int, str]] = []
    for now in range(100, until, every):
        release = house.tick(now)
        told = release.step_name if release.is_open else release.status
        if not story or story[-1][1] != told:
            story.append((now, told))
        if not release.is_open:
            break
    return story


def test_a_good_version_goes_from_the_shadow_to_full_traffic(house: House) -> None:
    story = through(house)
    assert [told for _, told in story] == ["shadow", "canary 10 %", "canary 50 %", "full", "finished"]
    begins = [at for at, _ in story]
    assert np.diff(begins).tolist()[:2] == [10, 10]
    assert begins[4] - begins[3] == 20
    assert house.kinds() == [
        ("promoted", "Staging"),
        ("canary_started", "Staging"),
        ("canary_started", "Staging"),
        ("canary_ended", "Staging"),
        ("promoted", "Production"),
        ("note", "Production"),
    ]
    release = house.releases.book.get("fraud/2")
    assert release.shares == tuple(zip(begins, (0.0, 0.1, 0.5, 1.0, 1.0), strict=True))
    record = house.records.get("release-0001")
    assert (record.outcome, record.details["way"], len(record.timeline)) == ("accepted", "plan", 5)
    assert release.warm == ()
    assert [event.kind for event in release.events] == ["begun", *["entered"] * 4, "closed"]
    before = house.all()
    house.tick(500)
    assert house.all() == before
    assert str(release) == "plan-0001 fraud/2 beside fraud/1: finished, full (4 of 4)"


def test_a_bad_version_never_sees_full_traffic_and_needs_a_new_gate(house: House) -> None:
    house.traffic.bad = 0.2
    story = through(house)
    assert [told for _, told in story] == ["shadow", "canary 10 %", "refused"]
    state = house.registry.state("fraud")
    assert (state.production, state.canary, state.version(2).stage, state.version(2).gate) == (
        1,
        None,
        "Archived",
        None,
    )
    release = house.releases.book.get("fraud/2")
    assert release.verdicts["canary"]["state"] == "refuse"
    assert release.events[-1].text.startswith("refused by loop: canary: worse: failed")
    assert house.records.get("release-0001").outcome == "refused"
    house.registry.ledger.record_gate("fraud", 2, GOOD, now=299, actor="gate")
    again = house.releases.begin("fraud", 2, house.plan, now=300, actor="ann", reason="again")
    assert again.release_id == "plan-0002"


def test_in_the_probation_the_way_back_is_one_move(house: House) -> None:
    seen: list[tuple[str, ...]] = []
    for now in range(100, 200, 2):
        release = house.tick(now)
        if release.kind == "full":
            break
    # The judge of the probation compares the two on traffic that a part of the machines still gives the one before.
    seen.append(release.warm)
    house.releases.abort("fraud/2", who="bob", why="complaints", now=now + 1)
    state = house.registry.state("fraud")
    assert (state.production, state.canary, seen) == (1, None, [("fraud/2", "fraud/1")])
    assert house.kinds()[-1] == ("rolled_back", "Archived")
    assert house.releases.book.get("fraud/2").status == "aborted"
    assert [record.outcome for record in house.records.list("release")] == ["rolled back"]
    assert house.records.list("incident")[0].outcome == "fraud/1 serves again"


@pytest.mark.parametrize("step", ["not begun", "shadow", "canary 10 %"])
def test_an_abort_puts_things_back_from_any_step(house: House, step: str) -> None:
    for now in range(100, 200, 2):
        if house.releases.book.get("fraud/2").step_name == step:
            break
        house.tick(now)
    release = house.releases.abort("fraud/2", who="bob", why="wrong data", now=now)
    state = house.registry.state("fraud")
    assert (release.status, release.move, state.production, state.canary) == ("aborted", None, 1, None)
    assert state.version(2).stage == ("None" if step == "not begun" else "Archived")
    assert state.version(2).gate is True
    with pytest.raises(Conflict, match="has ended: aborted"):
        house.releases.abort("fraud/2", who="bob", why="again", now=now)


def test_blue_green_alone_is_a_pointer_there_and_back(tmp_path: Path) -> None:
    house = furnish(tmp_path, plan_of(shares=(), shadow_for=0), Traffic())
    release = house.tick(100)
    assert (release.kind, release.warm, house.registry.state("fraud").production) == ("full", ("fraud/2", "fraud/1"), 2)
    release = house.releases.abort("fraud/2", who="bob", why="it is worse", now=105)
    assert (release.status, release.warm, house.registry.state("fraud").production) == ("aborted", (), 1)
    assert house.kinds() == [("promoted", "Production"), ("rolled_back", "Archived")]
    house.close()


def test_a_paused_release_goes_nowhere_but_back(house: House) -> None:
    house.tick(100)
    assert house.releases.pause("fraud/2", who="ann", why="holiday", now=101).status == "paused"
    for now in range(102, 140, 2):
        release = house.tick(now)
    assert (release.step_name, release.waits) == ("shadow", "paused by ann: holiday")
    with pytest.raises(Conflict, match="resume it first"):
        house.releases.advance("fraud/2", who="ann", why="now", now=140)
    house.releases.resume("fraud/2", who="ann", why="back", now=141)
    with pytest.raises(Conflict, match="is not paused"):
        house.releases.resume("fraud/2", who="ann", why="back", now=141)
    assert house.tick(142).step_name == "canary 10 %"
    house.releases.pause("fraud/2", who="ann", why="lunch", now=143)
    house.traffic.bad = 0.3
    assert [house.tick(now).status for now in range(144, 154, 2)][-1] == "refused"


def test_an_advance_skips_time_and_judges_and_no_gate(tmp_path: Path) -> None:
    verdicts: list[Verdict] = []

    def gate(candidate: str, incumbent: str, now: int) -> Verdict:
        verdicts.append(open_gate if now < 130 else GOOD)
        return verdicts[-1]

    few = Estimate(name="x", value=0.6, lower=0.4, upper=0.8, n_obs=9)
    open_gate = evaluate([at_least("slice", few, 0.5)])
    plan = plan_of()
    steps = tuple(dataclasses.replace(step, gate=gate if step.kind == "full" else None) for step in plan.steps)
    house = furnish(tmp_path, dataclasses.replace(plan, steps=steps), Traffic())
    for now in (100, 102):
        release = house.tick(now)
    for now in (104, 106, 108):
        ordered = house.releases.advance("fraud/2", who="bob", why="urgent", now=now)
        assert ordered.ordered is not None
        release = house.tick(now)
    # Two canaries were skipped over; the full step waits for its gate.
    assert (release.step_name, release.waits[:23]) == ("canary 50 %", "full waits for its gate")
    assert house.registry.state("fraud").production == 1
    entered = [event for event in release.events if event.kind == "entered"]
    assert [event.who for event in entered] == ["loop", "bob", "bob"]
    assert house.tick(130).step_name == "full"
    assert house.tick(132, looks=0).step_name == "full"
    assert [entry.actor for entry in house.registry.ledger.history("fraud") if entry.kind == "gate"][
        -1
    ] == "gate of full"
    assert len(verdicts) == 2
    house.close()


def test_a_gate_that_refuses_ends_the_release(tmp_path: Path) -> None:
    bad = evaluate([Check(name="latency", passed=False, value=30, bound=20, reason="too slow")])
    plan = plan_of(shadow_for=0)
    steps = (dataclasses.replace(plan.steps[0], gate=lambda *_: bad), *plan.steps[1:])
    house = furnish(tmp_path, dataclasses.replace(plan, steps=steps), Traffic())
    release = house.tick(100)
    assert (release.status, release.step) == ("refused", -1)
    assert house.registry.state("fraud").version(2).gate is False
    assert release.events[-1].text == "refused by loop: gate of canary 10 %: 1 of 1 check failed: latency too slow"
    with pytest.raises(GateRefused, match="the gate refused fraud/2"):
        house.releases.begin("fraud", 2, house.plan, now=110, actor="ann", reason="again")
    house.close()


def test_a_refusal_stands_also_where_somebody_else_has_ended_the_canary(house: House) -> None:
    house.tick(100)
    house.tick(110)
    release = house.releases.book.get("fraud/2")
    house.registry.ledger.end_canary("fraud", verdict="inconclusive", reason="by hand", actor="bob", now=111)
    # It was refused in the moment before, and the move stands in the book.
    with house.releases.book.changing(release) as writing:
        writing.set(move={"kind": "back", "outcome": "refused", "reason": "canary: it fails", "who": "loop"})
    ended = house.tick(112)
    assert ended.status == "overtaken"
    assert "canary: it fails; not put back: fraud: no canary is running" in ended.events[-1].text
    assert house.registry.state("fraud").version(2).gate is False
    with pytest.raises(GateRefused, match="the gate refused fraud/2"):
        house.releases.begin("fraud", 2, house.plan, now=113, actor="ann", reason="again")


class Refuses:
    def take(self, look: Look, *, now: int) -> Any:
        judge = TrafficJudge(candidate="fraud/2", incumbent="fraud/1", rates={"failed": RateRule()})
        return dataclasses.replace(judge.verdict(now), state="refuse", reason="it stops everything")

    def to_state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Any) -> None:
        assert state == {}


PLANNED_REFUSAL = PlannedJudge(make=lambda **_: Refuses())


def test_a_refusal_in_the_shadow_takes_the_gate_away(tmp_path: Path) -> None:
    house = furnish(tmp_path, plan_of(shadow=PLANNED_REFUSAL.make), Traffic())
    house.tick(100)
    release = house.tick(102)
    version = house.registry.state("fraud").version(2)
    assert (release.status, version.stage, version.gate) == ("refused", "Archived", False)
    house.close()


def test_a_step_that_asks_for_approvals_waits_for_other_people(tmp_path: Path) -> None:
    house = furnish(tmp_path, plan_of(approvals=2), Traffic())
    for now in range(100, 160, 2):
        release = house.tick(now)
    assert (release.step_name, release.waits) == ("canary 50 %", "full waits for approval, 0 of 2 given")
    with pytest.raises(Conflict, match="somebody else has to approve"):
        house.releases.approve("fraud/2", who="ann", why="mine", now=160)
    house.releases.advance("fraud/2", who="bob", why="urgent", now=160)
    with pytest.raises(Conflict, match="somebody else has to approve"):
        house.releases.approve("fraud/2", who="bob", why="mine", now=160)
    for who in ("cid", "cid", "CID", "c\u2003id", "dora"):
        assert house.registry.state("fraud").production == 1
        house.releases.approve("fraud/2", who=who, why="read it", now=161)
        release = house.tick(162)
    assert (release.step_name, house.registry.state("fraud").production) == ("full", 2)
    assert [who for _, who, _ in release.approvals] == ["cid", "dora"]
    with pytest.raises(Conflict, match="waits for nobody's approval"):
        house.releases.approve("fraud/2", who="eve", why="late", now=163)
    house.close()


def test_a_way_back_that_was_begun_is_finished_also_with_another_plan(house: House) -> None:
    for now in (100, 110):
        release = house.tick(now)
    with house.releases.book.changing(release) as writing:
        writing.set(move={"kind": "back", "outcome": "refused", "reason": "canary: it fails", "who": "loop"})
    for _ in range(2):
        ended = house.releases.tick("fraud/2", plan_of(alpha=0.01), house.traffic, now=112)
        assert ended.status == "refused"
    assert house.registry.state("fraud").canary is None


def test_who_asked_for_a_step_does_not_approve_it_also_when_another_asks_after(tmp_path: Path) -> None:
    house = furnish(tmp_path, plan_of(shares=(), approvals=1), Traffic())
    house.tick(100)
    for who in ("bob", "cid"):
        house.releases.advance("fraud/2", who=who, why="urgent", now=102)
    for who in ("ann", "bob", "cid", "ANN", "B ob", "c\u00a0id", "\uff41nn"):
        with pytest.raises(Conflict, match="somebody else has to approve"):
            house.releases.approve("fraud/2", who=who, why="mine", now=103)
    for who in ("bob ", " ", "do\u200bra", "\u202edora"):
        with pytest.raises(InvalidInput, match="who"):
            house.releases.approve("fraud/2", who=who, why="mine", now=103)
    assert house.tick(104).step_name == "shadow"
    house.releases.approve("fraud/2", who="dora", why="read it", now=105)
    assert house.tick(106).step_name == "full"
    house.close()


def test_the_approvals_of_the_ledger_hold_before_anything_is_answered(tmp_path: Path) -> None:
    house = furnish(tmp_path, plan_of(), Traffic(), approvals=1)
    for now in range(100, 130, 2):
        release = house.tick(now)
    assert (release.step_name, release.waits) == ("shadow", "fraud/2 waits for approval before it may answer")
    house.releases.advance("fraud/2", who="ann", why="urgent", now=130)
    assert house.tick(131).step_name == "shadow"
    house.releases.approve("fraud/2", who="bob", why="read it", now=132)
    assert house.registry.state("fraud").version(2).approvers == ("bob",)
    assert house.tick(133).step_name == "canary 10 %"
    house.close()


def test_what_somebody_else_moves_overtakes_the_release(house: House) -> None:
    house.tick(100)
    house.tick(110)
    assert house.registry.state("fraud").canary == 2
    house.registry.ledger.end_canary("fraud", verdict="inconclusive", reason="by hand", actor="bob", now=111)
    release = house.tick(112)
    assert (release.status, release.events[-1].text) == (
        "overtaken",
        "overtaken by loop: fraud/2 is no canary of 10 % any more",
    )
    push(house.registry, house.records, "fraud", 3, override=None, now=120, actor="bob")
    second = house.releases.begin("fraud", 2, house.plan, now=130, actor="ann", reason="again")
    assert second.champion == "fraud/3"
    house.tick(130)
    roll_back(house.registry, house.records, "fraud", GOOD, expected=3, now=131, actor="playbook")
    assert house.tick(132).status == "overtaken"
    assert house.registry.state("fraud").production == 1


def test_a_roll_back_by_the_playbook_in_the_probation_is_seen(house: House) -> None:
    while house.tick(150).kind != "full" and house.traffic.there < 60:
        house.releases.advance("fraud/2", who="bob", why="drill", now=150)
    roll_back(house.registry, house.records, "fraud", GOOD, expected=2, now=151, actor="playbook")
    release = house.tick(152)
    assert release.status == "overtaken"
    assert house.records.get("release-0001").outcome == "rolled back"
    assert house.registry.state("fraud").production == 1


def test_a_step_that_is_never_decided_is_given_up(tmp_path: Path) -> None:
    plan = plan_of(shadow_for=0)
    steps = tuple(dataclasses.replace(step, longest=30, least_decisions=10**9) for step in plan.steps[:1])
    house = furnish(tmp_path, dataclasses.replace(plan, steps=(*steps, *plan.steps[1:])), Traffic())
    story = through(house)
    assert [told for _, told in story] == ["canary 10 %", "inconclusive"]
    version = house.registry.state("fraud").version(2)
    assert version.gate is True
    assert "waits for 1,000,000,000 decisions" in house.releases.book.get("fraud/2").events[-1].text
    house.close()


def test_a_roll_back_from_full_traffic_can_be_switched_to_a_proposal(tmp_path: Path) -> None:
    plan = plan_of(shadow_for=0)
    house = furnish(
        tmp_path, dataclasses.replace(plan, judges={**plan.judges, "probation": PLANNED_REFUSAL}), Traffic()
    )
    for now in range(100, 130):
        release = house.tick(now)
        if release.kind == "full":
            break
    tick = house.releases.tick
    for later in (1, 2):
        release = tick("fraud/2", house.plan, house.traffic, now=now + later, only_proposed="only proposed, by ann")
    assert (release.kind, house.registry.state("fraud").production) == ("full", 2)
    assert release.waits == "roll back to fraud/1 is proposed: probation: it stops everything; only proposed, by ann"
    assert house.tick(now + 3).status == "refused"
    assert house.registry.state("fraud").production == 1
    house.close()


def test_a_version_without_a_verdict_begins_only_where_a_gate_comes_first(house: House) -> None:
    house.releases.abort("fraud/2", who="bob", why="to try another", now=101)
    number = house.registry.register("fraud", {"weights": b"new"}, now=102, actor="train").version
    with pytest.raises(GateRefused, match="no valid gate verdict"):
        house.releases.begin("fraud", number, house.plan, now=103, actor="ann", reason="x")
    steps = tuple(dataclasses.replace(step, gate=lambda *_: GOOD) for step in house.plan.steps)
    plan = dataclasses.replace(house.plan, steps=steps)
    house.releases.begin("fraud", number, plan, now=104, actor="ann", reason="x")
    tick = house.releases.tick
    assert tick(f"fraud/{number}", plan, house.traffic, now=105).step_name == "shadow"
    house.registry.ledger.record_gate("fraud", number, GOOD, now=106, actor="gate")
    assert tick(f"fraud/{number}", plan, house.traffic, now=120).step_name == "canary 10 %"


def test_a_clock_that_was_ahead_shortens_no_step(house: House) -> None:
    house.tick(10_000)
    release = house.tick(100)
    assert (release.entered_at, release.step_name) == (100, "shadow")
    assert [house.tick(now).step_name for now in (108, 110)] == ["shadow", "canary 10 %"]


def test_a_key_begins_one_release_also_after_it_has_ended(house: House) -> None:
    house.releases.abort("fraud/2", who="bob", why="to begin by key", now=101)
    given: dict[str, Any] = {"now": 110, "actor": "ann", "reason": "retrained", "key": "retrain-7"}
    begun = house.releases.begin("fraud", 2, house.plan, **given)
    assert house.releases.begin("fraud", 2, house.plan, **given) == begun
    ended = house.releases.abort("fraud/2", who="bob", why="no", now=111)
    assert house.releases.begin("fraud", 2, house.plan, **given) == ended
    with pytest.raises(Conflict, match="use a key of its own"):
        house.releases.begin("fraud", 3, house.plan, **given)


def test_what_cannot_begin_is_refused(house: House) -> None:
    begin = house.releases.begin
    given: dict[str, Any] = {"now": 110, "actor": "ann", "reason": "retrained"}
    assert begin("fraud", 2, house.plan, **given) == house.begun
    with pytest.raises(Conflict, match="is open; end it first"):
        begin("fraud", 2, plan_of(alpha=0.01), **given)
    with pytest.raises(Conflict, match="is open; end it first"):
        begin("fraud", 3, house.plan, **given)
    with pytest.raises(Conflict, match="is in Production already"):
        begin("fraud", 1, house.plan, **given)
    with pytest.raises(NotFound):
        begin("fraud", 9, house.plan, **given)
    with pytest.raises(InvalidInput, match="actor"):
        begin("fraud", 2, house.plan, now=110, actor=" ", reason="x")
    with pytest.raises(NotFound, match="plan-0001"):
        house.releases.book.get("fraud/7")
    with pytest.raises(Conflict, match="begun with another plan"):
        house.releases.tick("plan-0001", plan_of(alpha=0.01), house.traffic, now=110)
    house.registry.register("shop", {"weights": b"1"}, now=1, actor="train")
    with pytest.raises(Conflict, match="nothing of shop is in Production"):
        begin("shop", 1, house.plan, **given)
    house.releases.abort("fraud/2", who="bob", why="to try another", now=111)
    house.registry.ledger.start_canary("fraud", 3, 0.1, reason="by hand", actor="bob", now=112)
    with pytest.raises(Conflict, match="fraud/3 is a running canary"):
        begin("fraud", 2, house.plan, **given)


def test_a_release_of_another_book_of_this_ledger_stands_for_nothing(tmp_path: Path) -> None:
    # A home that was put back, or another machine: its book begins with plan-0001 again, the ledger has one already.
    gates: list[str] = []

    def gate(candidate: str, incumbent: str, now: int) -> Verdict:
        gates.append(candidate)
        return GOOD

    plan = plan_of(shares=(), shadow_for=0)
    plan = dataclasses.replace(plan, steps=tuple(dataclasses.replace(step, gate=gate) for step in plan.steps))
    house = furnish(tmp_path, plan, Traffic())
    house.tick(100)
    house.releases.abort("fraud/2", who="bob", why="worse", now=101)
    house.releases.close()
    for file in (tmp_path / "loop").glob("releases.sqlite*"):
        file.unlink()
    releases = Releases(house.registry, house.records)
    house.registry.ledger.record_gate("fraud", 2, GOOD, now=102, actor="gate")
    begun = releases.begin("fraud", 2, plan, now=102, actor="ann", reason="again")
    assert begun.release_id == "plan-0001"
    assert releases.tick("fraud/2", plan, house.traffic, now=103).kind == "full"
    assert gates == ["fraud/2", "fraud/2"]
    assert house.registry.state("fraud").production == 2
    assert house.kinds()[-1] == ("promoted", "Production")
    releases.close()
    house.registry.close()


def test_a_pushed_version_is_put_on_probation(house: House) -> None:
    push(house.registry, house.records, "fraud", 3, override=None, now=103, actor="bob")
    given: dict[str, Any] = {"actor": "bob", "reason": "a fix that could not wait"}
    # The release that the push has overtaken stands in nobody's way.
    release = house.releases.adopt("fraud", 3, house.plan, now=104, **given)
    assert house.releases.book.get("fraud/2").status == "overtaken"
    assert (release.release_id, release.step_name, release.status) == ("plan-0002", "full", "running")
    assert (release.entered_at, release.shares, release.warm) == (104, ((104, 1.0),), ("fraud/3", "fraud/1"))
    assert house.releases.adopt("fraud", 3, house.plan, now=110, **given) == release
    moved = [(entry.kind, entry.actor) for entry in house.registry.ledger.history("fraud", version=3)][2:]
    assert moved == [("promoted", "bob"), ("note", "bob")]
    tick = house.releases.tick
    assert tick("fraud/3", house.plan, house.traffic, now=123).step_name == "full"
    assert tick("fraud/3", house.plan, house.traffic, now=124).status == "finished"
    assert house.registry.state("fraud").production == 3


def test_a_pushed_version_that_its_judge_refuses_is_rolled_back(house: House) -> None:
    push(house.registry, house.records, "fraud", 3, override=None, now=103, actor="bob")
    plan = dataclasses.replace(house.plan, judges={**house.plan.judges, "probation": PLANNED_REFUSAL})
    given: dict[str, Any] = {"actor": "bob", "reason": "a drill", "key": "drill-1"}
    house.releases.adopt("fraud", 3, plan, now=104, **given)
    release = house.releases.tick("fraud/3", plan, house.traffic, now=105)
    assert (release.status, house.registry.state("fraud").production) == ("refused", 1)
    assert house.releases.adopt("fraud", 3, plan, now=106, **given) == release
    with pytest.raises(Conflict, match="fraud/3 is not in Production; call push first"):
        house.releases.adopt("fraud", 3, plan, now=107, actor="bob", reason="again")


def test_what_cannot_be_put_on_probation_is_refused(house: House) -> None:
    given: dict[str, Any] = {"now": 110, "actor": "bob", "reason": "pushed"}
    push(house.registry, house.records, "fraud", 2, override=None, now=101, actor="bob")
    house.releases.adopt("fraud", 2, plan_of(alpha=0.01), **given)
    with pytest.raises(Conflict, match="is open; end it first"):
        house.releases.begin("fraud", 3, house.plan, **given)
    with pytest.raises(Conflict, match="fraud/3 is not in Production"):
        house.releases.adopt("fraud", 3, house.plan, **given)
    house.releases.abort("fraud/2", who="bob", why="over", now=111)
    push(house.registry, house.records, "fraud", 3, override=None, now=112, actor="bob")
    with pytest.raises(Conflict, match="call adopt for its probation"):
        house.releases.begin("fraud", 3, house.plan, **given)
    house.registry.register("shop", {"weights": b"1"}, now=1, actor="train")
    house.registry.ledger.promote("shop", 1, "Production", reason="first", actor="ann", now=2, override="first")
    with pytest.raises(Conflict, match="nothing served before shop/1"):
        house.releases.adopt("shop", 1, house.plan, **given)
    with pytest.raises(InvalidInput, match="reason"):
        house.releases.adopt("fraud", 3, house.plan, now=1, actor="bob", reason="")
    house.registry.ledger.start_canary("fraud", 1, 0.1, reason="by hand", actor="bob", now=113)
    with pytest.raises(Conflict, match="fraud/1 is a running canary"):
        house.releases.adopt("fraud", 3, house.plan, **given)


def test_a_canary_that_was_begun_otherwise_is_taken_up_in_the_step_of_its_share(house: House) -> None:
    house.releases.abort("fraud/2", who="ann", why="another first", now=101)
    given: dict[str, Any] = {"actor": "bob", "reason": "begun by hand"}
    house.registry.ledger.start_canary("fraud", 3, 0.3, reason="by hand", actor="bob", now=102)
    with pytest.raises(Conflict, match="the plan has none of that"):
        house.releases.adopt("fraud", 3, house.plan, now=103, **given)
    house.registry.ledger.start_canary("fraud", 3, 0.5, reason="by hand", actor="bob", now=103)
    release = house.releases.adopt("fraud", 3, house.plan, now=104, **given)
    assert (release.step_name, release.champion, release.shares) == ("canary 50 %", "fraud/1", ((104, 0.5),))
    assert "from canary 50 % on, of shadow" in release.events[0].text
    assert [entry.kind for entry in house.registry.ledger.history("fraud", version=3)][-1] == "note"
    ended = house.releases.supersede("fraud/3", who="loop", why="a newer one", now=105)
    assert (ended.status, house.registry.state("fraud").canary) == ("superseded", None)
    assert house.records.list("release")[-1].outcome == "superseded"
    with pytest.raises(Conflict, match="has ended: superseded"):
        house.releases.supersede("fraud/3", who="loop", why="a newer one", now=106)


def test_many_who_tick_at_once_act_once(tmp_path: Path) -> None:
    house = furnish(tmp_path, plan_of(), Traffic(there=3, n=20_000))
    house.close()
    failures: list[BaseException] = []
    gate = threading.Barrier(4)

    def work() -> None:
        mine = House.at(tmp_path, plan_of(), Traffic(there=3, n=20_000))
        try:
            for now in range(100, 240, 10):
                gate.wait(timeout=60)
                mine.releases.tick("fraud/2", mine.plan, dataclasses.replace(mine.traffic, there=now), now=now)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)
            gate.abort()
        finally:
            mine.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    after = House.at(tmp_path, plan_of(), Traffic())
    assert after.releases.book.get("fraud/2").status == "finished"
    assert [kind for kind, _ in after.kinds()] == [
        "promoted",
        "canary_started",
        "canary_started",
        "canary_ended",
        "promoted",
        "note",
    ]
    after.close()
