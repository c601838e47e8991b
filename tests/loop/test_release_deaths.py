"""Death at any statement of a release: nothing is lost, nothing is done twice, and no promise is broken."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from tests.loop.release_house import House, Traffic, furnish, plan_of

from vitok.errors import Conflict, GateRefused
from vitok.loop import push


class Killed(BaseException):
    """Stands for the death of the process."""


STATEMENTS = (
    "release_run.py",
    "release_moves.py",
    "release_book.py",
    "releases.py",
    "records.py",
    "ledger.py",
    "change.py",
    "storage.py",
)


def tracer(deadly: int, die: Callable[[], None]) -> tuple[Any, list[int]]:
    """Calls `die` before the deadly-th statement of the modules that act, and counts them."""
    count = [0]

    def local(frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            count[0] += 1
            if count[0] == deadly:
                die()
        return local

    def enter(frame: FrameType, event: str, argument: object) -> Any:
        return local if frame.f_code.co_filename.endswith(STATEMENTS) and "vitok" in frame.f_code.co_filename else None

    return enter, count


def traced(house: House, now: int, deadly: int, die: Callable[[], None], *, bob: bool = False) -> int:
    enter, count = tracer(deadly, die)
    before = sys.gettrace()
    sys.settrace(enter)
    try:
        act(house, now, bob=bob)
    finally:
        sys.settrace(before)
    return count[0]


def act(house: House, now: int, *, bob: bool = False) -> None:
    if bob:
        house.releases.abort("fraud/2", who="bob", why="complaints", now=now)
    else:
        house.releases.tick("fraud/2", house.plan, house.traffic, now=now)


# Into the shadow, into a canary, a look that moves nothing, into full, out of the probation, back from a canary; and
# by hand, back from full.
MOMENTS = [(100, 0.02, False), (110, 0.02, False), (112, 0.02, False), (130, 0.02, False), (150, 0.02, False)]
MOMENTS += [(120, 0.3, False), (132, 0.02, True)]


def dead_at_each_statement(folder: Path, moment: tuple[int, float, bool], stride: int) -> int:
    """Kills at every `stride`-th statement of one tick and does it again; all that is kept is as if never killed."""
    at, bad, bob = moment
    plan, start, reference = plan_of(), folder / "start", folder / "reference"
    house = furnish(start, plan, Traffic(bad=0.02))
    for now in range(100, at, 2):
        house.traffic.bad = bad if now >= 118 else 0.02
        house.tick(now)
    house.traffic.bad = bad
    house.close()
    there = house.traffic.there + 1
    shutil.copytree(start, reference)
    house = House.at(reference, plan, Traffic(bad=bad, there=there))
    act(house, at, bob=bob)
    expected = house.all()
    house.close()
    deaths, deadly = 0, 1
    while True:
        home = folder / f"killed-{deadly}"
        shutil.copytree(start, home)
        house = House.at(home, plan, Traffic(bad=bad, there=there))

        def die() -> None:
            raise Killed

        try:
            traced(house, at, deadly, die, bob=bob)
        except Killed:
            deaths += 1
        else:
            house.close()
            break
        house.close()
        house = House.at(home, plan, Traffic(bad=bad, there=there))
        # Where all was done before it died, there is nothing to do again.
        if house.all() != expected:
            act(house, at, bob=bob and house.begun.move is None)
        assert house.all() == expected, f"killed before statement {deadly}"
        house.close()
        shutil.rmtree(home)
        deadly += stride
    return deaths


@pytest.mark.parametrize("moment", [MOMENTS[1], MOMENTS[5]])
def test_a_death_at_some_statements_loses_nothing_and_doubles_nothing(
    tmp_path: Path, moment: tuple[int, float, bool]
) -> None:
    assert dead_at_each_statement(tmp_path, moment, 151) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_death_at_many_statements_loses_nothing_and_doubles_nothing(
    tmp_path: Path, moment: tuple[int, float, bool]
) -> None:
    assert dead_at_each_statement(tmp_path, moment, 47) >= 10


def test_a_death_while_a_pushed_version_is_taken_up_begins_one_probation(tmp_path: Path) -> None:
    given = {"now": 104, "actor": "bob", "reason": "a fix"}
    house = furnish(tmp_path / "start", plan_of(), Traffic())
    push(house.registry, house.records, "fraud", 3, override=None, now=103, actor="bob")
    house.close()
    deadly, deaths, ends = 1, 0, set()
    while True:
        home = tmp_path / f"killed-{deadly}"
        shutil.copytree(tmp_path / "start", home)
        house = House.at(home, plan_of(), Traffic())

        def die() -> None:
            raise Killed

        enter, _count = tracer(deadly, die)
        before = sys.gettrace()
        sys.settrace(enter)
        try:
            house.releases.adopt("fraud", 3, house.plan, **given)  # type: ignore[arg-type]
        except Killed:
            sys.settrace(before)
            deaths += 1
            died = True
        else:
            died = False
        finally:
            sys.settrace(before)
        house.close()
        house = House.at(home, plan_of(), Traffic())
        release = house.releases.adopt("fraud", 3, house.plan, **given)  # type: ignore[arg-type]
        ledger = [entry.to_dict() for entry in house.registry.ledger.history("fraud")]
        ends.add(json.dumps([release.to_dict(), house.releases.book.get("fraud/2").to_dict(), ledger]))
        house.close()
        shutil.rmtree(home)
        if not died:
            break
        deadly += 131
    assert deaths >= 3
    assert len(ends) == 1


@pytest.mark.parametrize("seed", range(6))
def test_whatever_people_order_and_whoever_dies_the_promises_hold(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    plan = plan_of(approvals=1)
    house = furnish(tmp_path, plan, Traffic(n=400))
    now = 100
    for _ in range(45):
        now += int(rng.integers(-3, 8))
        house.traffic.there += int(rng.integers(0, 3))
        house.traffic.bad = 0.3 if seed == 0 and now > 150 else 0.02
        who = ["ann", "bob", "cid"][int(rng.integers(3))]
        name = ["tick", "tick", "tick", "pause", "resume", "advance", "approve", "abort"][int(rng.integers(8))]
        if name == "abort" and rng.random() < 0.93:
            name = "tick"
        before = sys.gettrace()

        def die() -> None:
            raise Killed

        enter, _count = tracer(int(rng.integers(1, 3_000)), die)
        sys.settrace(enter)
        try:
            if name == "tick":
                house.releases.tick("fraud/2", plan, house.traffic, now=now)
            else:
                getattr(house.releases, name)("fraud/2", who=who, why="a drill", now=now)
        except (Killed, Conflict, GateRefused) as error:
            sys.settrace(before)
            if isinstance(error, Killed):
                house.close()
                house = House.at(tmp_path, plan, house.traffic)
        finally:
            sys.settrace(before)
        check_promises(house)
        if rng.random() < 0.05 and house.registry.state("fraud").canary is not None:
            house.registry.ledger.end_canary("fraud", verdict="inconclusive", reason="by hand", actor="eve", now=now)
    house.releases.tick("fraud/2", plan, house.traffic, now=now)
    release = house.releases.book.get("fraud/2")
    assert release.move is None
    assert house.registry.ledger.verify().intact
    state = house.registry.state("fraud")
    serves = {"full": 2}.get(release.kind, 1) if release.is_open or release.status == "finished" else 1
    assert state.production == serves
    house.close()


def check_promises(house: House) -> None:
    release = house.releases.book.get("fraud/2")
    promoted = [kind for kind, stage in house.kinds() if (kind, stage) == ("promoted", "Production")]
    assert len(promoted) <= 1
    begun = [event.text.split(" of ")[0] for event in release.events if event.kind == "entered"]
    assert begun == [step.name for step in house.plan.steps][: len(begun)]
    if promoted:
        approvers = {who for place, who, _ in release.approvals if place == 3} - {"ann"}
        assert approvers


CHILD = """
import os, signal, sys
from pathlib import Path
from tests.loop import test_release_deaths as t

house = t.House.at(Path(sys.argv[1]), t.plan_of(), t.Traffic(there=int(sys.argv[2])))
def die():
    os.kill(os.getpid(), signal.SIGKILL)
t.traced(house, int(sys.argv[3]), int(sys.argv[4]), die)
"""


@pytest.mark.parametrize(
    "share", [0.55, pytest.param(0.8, marks=pytest.mark.slow), pytest.param(0.97, marks=pytest.mark.slow)]
)
def test_kill_9_in_a_promotion_promotes_once(tmp_path: Path, share: float) -> None:
    house = furnish(tmp_path / "start", plan_of(), Traffic())
    for now in range(100, 130, 2):
        house.tick(now)
    house.close()
    there = house.traffic.there + 1
    shutil.copytree(tmp_path / "start", tmp_path / "reference")
    house = House.at(tmp_path / "reference", plan_of(), Traffic(there=there))
    statements = traced(house, 130, -1, lambda: None)
    expected = house.all()
    house.close()
    root = Path(__file__).resolve().parents[2]
    arguments = [str(tmp_path / "start"), str(there), "130", str(int(share * statements))]
    command = [sys.executable, "-c", CHILD, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=root)
    assert done.returncode == -signal.SIGKILL, done.stderr
    house = House.at(tmp_path / "start", plan_of(), Traffic(there=there))
    if house.all() != expected:
        act(house, 130)
    assert house.all() == expected
    assert [kind for kind, stage in house.kinds() if stage == "Production"] == ["promoted"]
    house.close()
