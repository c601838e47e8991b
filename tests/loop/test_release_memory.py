"""What a release keeps of its judges: the ids that they have counted, and their sums, across ticks and schemas."""

import contextlib
import dataclasses
import json
import sqlite3
import zlib
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.loop.release_house import House, Traffic, furnish, plan_of

from vitok.errors import Conflict, StoreError
from vitok.loop import JudgeRules, PairedJudge, Release, ReleasePlan
from vitok.loop.release_book import ReleaseBook, Writing
from vitok.loop.release_evidence import Look, Seen
from vitok.policies import Costs, TierPolicy


def paired_plan() -> ReleasePlan:
    def compare(*, candidate: str, incumbent: str, confidence_level: float) -> PairedJudge:
        policy, costs = TierPolicy(costs=Costs()), Costs()
        return PairedJudge(
            candidate=candidate,
            incumbent=incumbent,
            candidate_policy=policy,
            incumbent_policy=policy,
            costs=costs,
            rules=JudgeRules(confidence_level=confidence_level),
        )

    return plan_of(shadow=compare, shadow_for=1_000)


@dataclasses.dataclass
class Pairs:
    """A hundred decisions a look, half of them of the look before."""

    def look(self, release: Any, *, now: int) -> Look:
        names = [f"r{row}" for row in range(50 * now, 50 * now + 100)]
        columns = {"request_id": names, "amount": 50.0, "model_version": "fraud/1", "probability": 0.01}
        more = {"action": "allow", "shadow_version": "fraud/2", "shadow_probability": 0.01, "label": 0}
        frame = pl.DataFrame(columns | more)
        return Look(decisions=frame, labelled=frame, position=now)


def test_a_tick_keeps_only_the_ids_that_were_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = paired_plan()
    house = furnish(tmp_path, plan, Traffic())
    other = House.at(tmp_path, plan, Traffic())
    whole: list[int] = []
    ids = ReleaseBook.ids

    def counted(book: ReleaseBook, release: Release, judge: str) -> dict[str, Seen]:
        whole.append(1)
        return ids(book, release, judge)

    monkeypatch.setattr(ReleaseBook, "ids", counted)
    for now in range(100, 140):
        # Two processes by turns for a while, then one.
        who = other if now < 110 and now % 2 else house
        release = who.releases.tick("fraud/2", plan, Pairs(), now=now)
    assert len(whole) == 9
    state = house.releases.book.state(release, "shadow")
    assert state is not None
    # The first tick took the step; of 39 looks each brought 50 new requests, the first 100.
    assert state["alerts"]["n"] == 39 * 50 + 50
    assert state["cost"]["n"] == 39 * 50 + 50
    assert house.releases.book.n_ids(release, "shadow") == {"seen": 2_000, "matured": 2_000}
    assert len(json.dumps(state)) < 3_000
    runs = ids(house.releases.book, release, "shadow")["seen"].runs
    assert [len(run) for run in runs] == sorted((len(run) for run in runs), reverse=True)
    assert len(runs) < 12
    house.releases.abort("fraud/2", who="bob", why="over", now=200)
    assert house.releases.book.n_ids(release, "shadow") == {}
    assert house.releases.book.state(release, "shadow") == state
    other.close()
    house.close()


def test_a_look_that_could_not_be_kept_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = paired_plan()
    house = furnish(tmp_path, plan, Traffic())
    for now in (100, 101):
        house.releases.tick("fraud/2", plan, Pairs(), now=now)
    with monkeypatch.context() as patch:

        def full(*_: object, **__: object) -> None:
            raise StoreError("the disk is full")

        patch.setattr(Writing, "set", full)
        with pytest.raises(StoreError, match="disk is full"):
            house.releases.tick("fraud/2", plan, Pairs(), now=102)
    release = house.releases.tick("fraud/2", plan, Pairs(), now=102)
    state = house.releases.book.state(release, "shadow")
    assert state is not None
    assert state["alerts"]["n"] == 150
    assert house.releases.book.n_ids(release, "shadow")["seen"] == 150
    house.close()


def test_a_book_of_the_first_schema_goes_on_with_the_ids_in_its_state(tmp_path: Path) -> None:
    plan = paired_plan()
    house = furnish(tmp_path, plan, Traffic())
    for now in (100, 101):
        release = house.releases.tick("fraud/2", plan, Pairs(), now=now)
    level = plan.confidence_level("shadow")
    judge = plan.judges["shadow"].make(candidate="fraud/2", incumbent="fraud/1", confidence_level=level)
    judge.take(Pairs().look(None, now=101), now=101)
    house.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "loop" / "releases.sqlite")) as old, old:
        old.execute("DROP TABLE seen")
        old.execute("ALTER TABLE release DROP COLUMN revision")
        packed = zlib.compress(json.dumps(judge.to_state()).encode())
        old.execute("UPDATE judge SET state = ?", (packed,))
        old.execute("PRAGMA user_version = 1")
    house = House.at(tmp_path, plan, Traffic())
    release = house.releases.tick("fraud/2", plan, Pairs(), now=102)
    state = house.releases.book.state(release, "shadow")
    assert state is not None
    assert (state["alerts"]["n"], house.releases.book.n_ids(release, "shadow")["seen"]) == (150, 150)
    house.close()


def test_a_judge_that_cannot_go_on_says_so_and_the_release_can_be_ended(tmp_path: Path) -> None:
    plan = paired_plan()
    house = furnish(tmp_path, plan, Traffic())
    for now in (100, 101):
        house.releases.tick("fraud/2", plan, Pairs(), now=now)
    with contextlib.closing(sqlite3.connect(tmp_path / "loop" / "releases.sqlite")) as book, book:
        book.execute("UPDATE judge SET state = ?", (zlib.compress(b'{"about": 1}'),))
    with pytest.raises(Conflict, match="judge 'shadow' of plan-0001 cannot go on, go on with the program"):
        house.releases.tick("fraud/2", plan, Pairs(), now=102)
    assert house.releases.abort("fraud/2", who="bob", why="changed", now=103).status == "aborted"
    house.close()


def test_a_look_with_more_behind_it_is_looked_on_in_the_same_tick(tmp_path: Path) -> None:
    class Pieces:
        def look(self, release: Any, *, now: int) -> Look:
            place = (release.position or 0) + 1
            return dataclasses.replace(Pairs().look(release, now=place), position=place, more=place % 5 != 0)

    plan = paired_plan()
    house = furnish(tmp_path, plan, Traffic())
    house.releases.tick("fraud/2", plan, Pieces(), now=100)
    release = house.releases.tick("fraud/2", plan, Pieces(), now=101)
    assert (release.position, release.decisions) == (5, 500)
    state = house.releases.book.state(release, "shadow")
    assert state is not None
    assert state["alerts"]["n"] == 300
    house.close()
