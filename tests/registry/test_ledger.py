"""Oracle of the ledger's rules: a second, much simpler model of them, driven by the same random commands."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitok.errors import Conflict, GateRefused, InvalidInput, NotFound, StoreError, VitokError
from vitok.registry import Entry, Ledger, Stage, at_least, evaluate

Add = Callable[..., int]
WHO: dict[str, Any] = {"actor": "ann", "reason": "because"}
REFUSED = evaluate([at_least("average_precision", 0.4, 0.5)])
ACCEPTED = evaluate([at_least("average_precision", 0.6, 0.5)])


def promote(ledger: Ledger, version: int, stage: str = "Production", **more: Any) -> Entry:
    return ledger.promote("fraud", version, cast("Stage", stage), **{**WHO, "now": 0, **more})


def test_versions_count_up_for_each_model(ledger: Ledger, add: Add) -> None:
    assert [add(), add(), add("ads"), add()] == [1, 2, 1, 3]
    assert ledger.models() == ("ads", "fraud")
    assert ledger.state("fraud").version(2).name == "fraud/2"
    assert ledger.state("fraud").latest == 3


def test_unknown_model_and_version(ledger: Ledger, add: Add) -> None:
    assert ledger.state("fraud").production is None
    assert ledger.at("fraud", 10**15) is None
    assert ledger.history("fraud") == ()
    add()
    with pytest.raises(NotFound, match=r"fraud/9.*there is: fraud/1"):
        promote(ledger, 9)
    with pytest.raises(NotFound):
        promote(ledger, 0)


def test_promotion_archives_the_former_in_one_transaction(ledger: Ledger, add: Add) -> None:
    add(), add()
    promote(ledger, 1, now=10)
    entry = ledger.promote("fraud", 2, "Production", reason="better", actor="loop", now=20, expected=1)
    state = ledger.state("fraud")
    assert (state.production, state.previous) == (2, 1)
    assert [version.stage for version in state.versions] == ["Archived", "Production"]
    assert entry.details["from_version"] == 1
    assert (entry.stage_from, entry.stage_to) == ("None", "Production")
    assert [e.kind for e in ledger.history("fraud", version=1)][-1] == "archived"
    assert str(entry) == "1970-01-01T00:00:00.000020Z fraud/2 promoted None → Production by loop: better"


def test_gate_is_asked_for(ledger: Ledger, add: Add) -> None:
    add(gate=False)
    with pytest.raises(GateRefused, match="no valid gate verdict"):
        promote(ledger, 1)
    ledger.record_gate("fraud", 1, REFUSED, now=1, actor="gate")
    with pytest.raises(GateRefused, match=r"average_precision 0\.4 is below 0\.5"):
        promote(ledger, 1)
    assert ledger.state("fraud").production is None
    promote(ledger, 1, "Staging")
    entry = ledger.promote("fraud", 1, "Production", now=3, override="fire drill", **WHO)
    assert entry.details["override"] == "fire drill"
    assert "average_precision" in entry.details["missing"]


def test_latest_verdict_counts(ledger: Ledger, add: Add) -> None:
    add()
    ledger.record_gate("fraud", 1, REFUSED, now=1, actor="gate")
    with pytest.raises(GateRefused):
        promote(ledger, 1)
    ledger.record_gate("fraud", 1, ACCEPTED, now=2, actor="gate")
    promote(ledger, 1)


def test_compare_and_set(ledger: Ledger, add: Add) -> None:
    add(), add()
    with pytest.raises(Conflict, match="nothing is in Production, not version 2"):
        promote(ledger, 1, expected=2)
    promote(ledger, 1, expected=0)
    with pytest.raises(Conflict, match="fraud/1 is in Production"):
        promote(ledger, 2, expected=0)
    before = ledger.revision()
    with pytest.raises(Conflict, match="already"):
        promote(ledger, 1)
    with pytest.raises(Conflict, match="serves"):
        promote(ledger, 1, "Archived")
    assert ledger.revision() == before


def test_rollback_goes_back_through_the_versions_that_served(ledger: Ledger, add: Add) -> None:
    for now in (10, 20, 30):
        promote(ledger, add(), now=now)
    entry = ledger.rollback("fraud", now=40, expected=3, **WHO)
    assert (entry.version, entry.details["to_version"]) == (3, 2)
    with pytest.raises(Conflict):
        ledger.rollback("fraud", now=41, expected=3, **WHO)
    assert ledger.state("fraud").production == 2
    ledger.rollback("fraud", now=50, expected=2, **WHO)
    with pytest.raises(Conflict, match="nothing to go back to"):
        ledger.rollback("fraud", now=60, **WHO)
    assert [ledger.at("fraud", now) for now in (9, 10, 25, 30, 39, 40, 49, 50, 99)] == [None, 1, 2, 3, 3, 2, 2, 1, 1]
    # What was rolled back needs a new gate.
    with pytest.raises(GateRefused):
        promote(ledger, 3, now=70)
    ledger.record_gate("fraud", 3, ACCEPTED, now=71, actor="gate")
    promote(ledger, 3, now=72)
    assert ledger.state("fraud").previous == 1


def test_canary(ledger: Ledger, add: Add) -> None:
    add(), add(), add(gate=False)
    canary: dict[str, Any] = {**WHO, "now": 5}
    with pytest.raises(Conflict, match="nothing is in Production"):
        ledger.start_canary("fraud", 2, 0.1, **canary)
    promote(ledger, 1)
    with pytest.raises(Conflict, match="another version"):
        ledger.start_canary("fraud", 1, 0.1, **canary)
    with pytest.raises(GateRefused):
        ledger.start_canary("fraud", 3, 0.1, **canary)
    ledger.start_canary("fraud", 2, 0.1, **canary)
    with pytest.raises(Conflict, match="running canary"):
        ledger.start_canary("fraud", 3, 0.1, override="test", **canary)
    with pytest.raises(Conflict, match="end the canary first"):
        promote(ledger, 2, "Archived")
    with pytest.raises(Conflict, match="end it first"):
        promote(ledger, 3, override="test")
    ledger.start_canary("fraud", 2, 0.5, **{**canary, "now": 7})
    state = ledger.state("fraud")
    assert (state.canary, state.canary_share, state.canary_since) == (2, 0.5, 5)
    with pytest.raises(Conflict, match="not version 3"):
        ledger.end_canary("fraud", verdict="refused", version=3, **canary)
    ledger.end_canary("fraud", verdict="refused", **canary)
    assert ledger.state("fraud").canary is None
    with pytest.raises(Conflict, match="no canary"):
        ledger.end_canary("fraud", verdict="refused", **canary)
    # A lost canary needs a new gate.
    with pytest.raises(GateRefused):
        ledger.start_canary("fraud", 2, 0.1, **canary)


def test_promoting_the_canary_ends_it(ledger: Ledger, add: Add) -> None:
    add(), add()
    promote(ledger, 1)
    ledger.start_canary("fraud", 2, 0.1, now=1, **WHO)
    promote(ledger, 2, now=2)
    state = ledger.state("fraud")
    assert (state.production, state.canary, state.canary_share) == (2, None, 0.0)
    ended = [entry for entry in ledger.history("fraud") if entry.kind == "canary_ended"]
    assert ended[0].details == {"verdict": "accepted", "share": 0.1, "since": 1}


def test_rollback_works_while_a_canary_runs(ledger: Ledger, add: Add) -> None:
    add(), add(), add()
    promote(ledger, 1)
    promote(ledger, 2)
    ledger.start_canary("fraud", 1, 0.1, now=1, **WHO)
    ledger.rollback("fraud", now=2, **WHO)
    state = ledger.state("fraud")
    assert (state.production, state.canary) == (1, None)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan"), float("inf"), True, "0.1"])
def test_share_is_checked(ledger: Ledger, add: Add, share: float) -> None:
    add()
    with pytest.raises(InvalidInput, match="share"):
        ledger.start_canary("fraud", 1, share, now=0, **WHO)


def test_approval_by_a_second_person(ledger: Ledger, add: Add) -> None:
    add()
    ledger.propose("fraud", 1, reason="looks good", actor="ann", now=1)
    with pytest.raises(GateRefused, match="waits for somebody else's approval"):
        promote(ledger, 1)
    with pytest.raises(Conflict, match="somebody else"):
        ledger.approve("fraud", 1, reason="me too", actor="ann", now=2)
    ledger.approve("fraud", 1, reason="agreed", actor="bob", now=3)
    promote(ledger, 1, now=4)
    assert ledger.state("fraud").version(1).proposed_by is None
    with pytest.raises(Conflict, match="not proposed"):
        ledger.approve("fraud", 1, reason="again", actor="bob", now=5)
    with pytest.raises(Conflict, match="already"):
        ledger.propose("fraud", 1, reason="again", actor="bob", now=5)


def test_an_override_stands_for_no_approval(ledger: Ledger, add: Add) -> None:
    add()
    ledger.propose("fraud", 1, reason="looks good", actor="ann", now=1)
    for _ in range(2):
        with pytest.raises(GateRefused, match="waits for somebody else's approval"):
            ledger.promote("fraud", 1, "Production", reason="now", actor="ann", now=2, override="I am sure")


def test_a_model_whose_versions_all_need_two_people(ledger: Ledger, add: Add) -> None:
    ledger.require_approvals("fraud", 2, reason="audit", actor="ann", now=0)
    add()
    who: dict[str, Any] = {"reason": "r", "now": 1}
    for override in (None, "I am sure"):
        with pytest.raises(GateRefused, match="2 people to approve it, and was not proposed"):
            ledger.promote("fraud", 1, "Production", actor="ann", override=override, **who)
    ledger.propose("fraud", 1, actor="ann", **who)
    ledger.approve("fraud", 1, actor="bob", **who)
    with pytest.raises(Conflict, match="counts once"):
        ledger.approve("fraud", 1, actor="bob", **who)
    with pytest.raises(GateRefused, match="1 of 2 given"):
        promote(ledger, 1)
    ledger.approve("fraud", 1, actor="eve", **who)
    assert ledger.state("fraud").version(1).approvers == ("bob", "eve")
    promote(ledger, 1, now=2)
    # The next version begins anew, also as a canary; going back needs nobody.
    add()
    with pytest.raises(GateRefused, match="not proposed"):
        ledger.start_canary("fraud", 2, 0.1, actor="ann", **who)


def test_fewer_approvals_take_two_people(ledger: Ledger) -> None:
    who: dict[str, Any] = {"reason": "r", "now": 1}
    ledger.require_approvals("fraud", 1, actor="ann", **who)
    with pytest.raises(Conflict, match="already"):
        ledger.require_approvals("fraud", 1, actor="ann", **who)
    first = ledger.require_approvals("fraud", 0, actor="ann", key="k", **who)
    assert first.details["waits"]
    assert ledger.require_approvals("fraud", 0, actor="ann", key="k", **who).seq == first.seq
    assert ledger.state("fraud").approvals == 1
    with pytest.raises(Conflict, match="somebody else"):
        ledger.require_approvals("fraud", 0, actor="ann", **who)
    assert not ledger.require_approvals("fraud", 0, actor="bob", **who).details["waits"]
    assert ledger.state("fraud").approvals == 0
    with pytest.raises(InvalidInput, match="needed"):
        ledger.require_approvals("fraud", -1, actor="ann", **who)


def test_keys_make_every_step_repeatable(ledger: Ledger) -> None:
    def turn() -> list[object]:
        made: list[object] = [
            ledger.register("fraud", digest="a", path="fraud/1", now=1, actor="train", key="r1"),
            ledger.register("fraud", digest="b", path="fraud/2", now=1, actor="train", key="r2"),
        ]
        for version in (1, 2):
            made.append(ledger.record_gate("fraud", version, ACCEPTED, now=2, actor="gate", key=f"g{version}"))
        made.append(promote(ledger, 1, now=3, expected=0, key="p1"))
        made.append(ledger.propose("fraud", 2, now=4, key="propose", **WHO))
        made.append(ledger.approve("fraud", 2, now=4, key="approve", actor="bob", reason="yes"))
        made.append(ledger.start_canary("fraud", 2, 0.1, now=4, expected=1, key="c", **WHO))
        made.append(ledger.end_canary("fraud", verdict="accepted", now=5, key="e", **WHO))
        made.append(promote(ledger, 2, now=6, expected=1, key="p2"))
        made.append(ledger.rollback("fraud", now=7, expected=2, key="b", **WHO))
        made.append(ledger.note("fraud", "hello", actor="ann", now=8, key="n"))
        made.append(promote(ledger, 2, "Staging", now=9, key="s"))
        made.append(promote(ledger, 2, "Archived", now=9, key="a"))
        return made

    first = turn()
    revision = ledger.revision()
    assert turn() == first
    assert ledger.revision() == revision


def test_key_for_something_else_is_a_conflict(ledger: Ledger, add: Add) -> None:
    add(), add()
    promote(ledger, 1, key="k")
    with pytest.raises(Conflict, match="key 'k' was used for something else"):
        promote(ledger, 2, key="k")
    with pytest.raises(Conflict):
        ledger.register("fraud", digest="x", path="p", now=0, actor="a", key="k")
    add("ads")
    ledger.promote("ads", 1, "Production", now=0, key="k", **WHO)
    assert ledger.entry("ads", "k") is not None
    assert ledger.entry("ads", "other") is None


def test_clock_that_steps_back(ledger: Ledger, add: Add) -> None:
    add(now=1000), add(now=1000)
    promote(ledger, 1, now=2000)
    entry = ledger.promote("fraud", 2, "Production", now=500, **WHO)
    assert (entry.time_us, entry.details["clock"]) == (2000, 500)
    assert ledger.at("fraud", 1999) is None
    assert ledger.at("fraud", 2000) == 2


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("actor", {"actor": ""}),
        ("actor", {"actor": None}),
        ("reason", {"reason": "  "}),
        ("reason", {"reason": "\ud800"}),
        ("now", {"now": -1}),
        ("now", {"now": 1.5}),
        ("now", {"now": 2**70}),
        ("key", {"key": ""}),
    ],
)
def test_bad_arguments_change_nothing(ledger: Ledger, add: Add, field: str, change: dict[str, Any]) -> None:
    add()
    before = ledger.revision()
    with pytest.raises(InvalidInput, match=field):
        promote(ledger, 1, **change)
    assert ledger.revision() == before


def test_other_bad_arguments(ledger: Ledger, add: Add) -> None:
    add()
    with pytest.raises(InvalidInput, match="stage"):
        promote(ledger, 1, "Prod")
    with pytest.raises(InvalidInput, match="model"):
        ledger.register("../x", digest="d", path="p", now=0, actor="a")
    with pytest.raises(InvalidInput, match="digest"):
        ledger.register("fraud", digest="", path="p", now=0, actor="a")
    with pytest.raises(InvalidInput, match="verdict"):
        ledger.end_canary("fraud", verdict="good", now=0, **WHO)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="details"):
        ledger.note("fraud", "x", actor="a", now=0, details={"x": float("nan")})
    ledger.register("new", digest="d", path="p", now=0, actor="a")
    with pytest.raises(InvalidInput, match="override"):
        ledger.promote("new", 1, "Production", now=0, override=" ", **WHO)


def test_resolve(ledger: Ledger, add: Add) -> None:
    add(), add(), add()
    with pytest.raises(NotFound, match="Production"):
        ledger.state("fraud").resolve("Production")
    promote(ledger, 1)
    promote(ledger, 2, "Staging")
    ledger.start_canary("fraud", 3, 0.1, now=0, **WHO)
    state = ledger.state("fraud")
    assert [state.resolve(word).version for word in ("Production", "Staging", "canary", "latest", 2)] == [1, 2, 3, 3, 2]
    with pytest.raises(InvalidInput):
        state.resolve("champion")
    assert str(state) == "fraud/1 in Production, canary fraud/3 at 10 %, 3 versions"


def test_text_of_any_kind_is_kept(ledger: Ledger, add: Add) -> None:
    add()
    text = "naïve 'quotes'; DROP TABLE entry; 漢字 100 % ? \n 🙂"
    entry = ledger.note("fraud", text, actor=text.replace("\n", ""), now=0, details={"t": [f"{text}\x00", None, 1.5]})
    assert ledger.history("fraud")[-1] == entry
    assert ledger.history("fraud")[-1].reason == text
    assert ledger.verify().intact


def test_state_follows_another_ledger_on_the_same_place(ledger: Ledger, add: Add) -> None:
    other = pickle.loads(pickle.dumps(ledger))
    assert other.state("fraud").latest == 0
    before = other.revision()
    add()
    assert other.catch_up() > before
    promote(ledger, 1)
    other.catch_up()
    assert other.state("fraud").production == 1
    assert other.state("fraud") == ledger.state("fraud")
    other.close()


def test_pickle_and_fork(ledger: Ledger, add: Add) -> None:
    add()
    copy = pickle.loads(pickle.dumps(ledger))
    assert copy.state("fraud").latest == 1
    copy.close()
    process = multiprocessing.get_context("fork").Process(target=_in_child, args=(ledger,))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert ledger.state("fraud").latest == 2
    assert ledger.verify().intact


def _in_child(ledger: Ledger) -> None:
    ok = ledger.register("fraud", digest="c", path="p", now=1, actor="child") == 2
    os._exit(0 if ok and ledger.state("fraud").latest == 2 else 1)


def test_threads_share_one_ledger(ledger: Ledger) -> None:
    numbers: list[int] = []

    def work() -> None:
        for _ in range(10):
            numbers.append(ledger.register("fraud", digest="d", path="p", now=0, actor="t"))
            ledger.state("fraud")
            ledger.revision()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 41))
    assert ledger.verify().intact


WRITER = """
import sys
from vitok.errors import Conflict
from vitok.registry import Ledger, at_least, evaluate
ledger = Ledger(sys.argv[1])
verdict = evaluate([at_least("x", 1, 0)])
done = lost = 0
for i in range(20):
    version = ledger.register("fraud", digest="d", path="p", now=i, actor=sys.argv[2])
    ledger.record_gate("fraud", version, verdict, now=i, actor=sys.argv[2])
    present = ledger.state("fraud").production or 0
    try:
        ledger.promote("fraud", version, "Production", reason="r", actor=sys.argv[2], now=i, expected=present)
        done += 1
    except Conflict:
        lost += 1
print(done, lost)
"""


def test_two_processes_append_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.sqlite"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name in ("left", "right")
    ]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [error for _, error in answers] == ["", ""]
    counts = [[int(number) for number in answer.split()] for answer, _ in answers]
    assert all(sum(count) == 20 for count in counts)
    ledger = Ledger(path)
    state = ledger.state("fraud")
    assert state.latest == 40
    assert len(state.served) == counts[0][0] + counts[1][0]
    assert sum(version.stage == "Production" for version in state.versions) == 1
    assert ledger.verify().intact
    ledger.close()


COMMAND = st.tuples(
    st.sampled_from(
        ["register", "accept", "refuse", "staging", "production", "archive", "rollback", "canary", "end", "note"]
    ),
    st.integers(1, 4),
    st.integers(-2, 5),
)


class Oracle:
    """The rules once more, as plainly as can be."""

    def __init__(self) -> None:
        self.stage: dict[int, str] = {}
        self.gate: dict[int, bool] = {}
        self.served: list[int] = []
        self.canary: int | None = None

    @property
    def production(self) -> int | None:
        return self.served[-1] if self.served else None

    def apply(self, command: str, version: int) -> bool:
        """Returns whether the ledger has to accept the command."""
        exists = version in self.stage
        gated = self.gate.get(version, False)
        match command:
            case "register":
                self.stage[len(self.stage) + 1] = "None"
                return True
            case "note":
                return exists
            case "accept" | "refuse" if exists:
                self.gate[version] = command == "accept"
                return True
            case "staging" if exists and self.stage[version] not in ("Staging", "Production"):
                self.stage[version] = "Staging"
                return True
            case "archive" if (
                exists and self.stage[version] not in ("Archived", "Production") and self.canary != version
            ):
                self.stage[version] = "Archived"
                return True
            case "production" if exists and gated and self.production != version and self.canary in (None, version):
                if self.production is not None:
                    self.stage[self.production] = "Archived"
                self.stage[version] = "Production"
                self.served.append(version)
                self.canary = None
                return True
            case "rollback" if len(self.served) > 1:
                bad = self.served.pop()
                self.stage[bad] = "Archived"
                self.gate.pop(bad, None)
                self.stage[self.served[-1]] = "Production"
                self.canary = None
                return True
            case "canary" if (
                exists and gated and self.production not in (None, version) and self.canary in (None, version)
            ):
                self.canary = version
                return True
            case "end" if self.canary is not None:
                self.gate.pop(self.canary, None)
                self.canary = None
                return True
        return False


def run(ledger: Ledger, command: str, version: int, now: int) -> None:
    match command:
        case "register":
            ledger.register("fraud", digest="d", path="p", now=now, actor="a")
        case "note":
            ledger.note("fraud", "n", actor="a", now=now, version=version)
        case "accept" | "refuse":
            ledger.record_gate("fraud", version, ACCEPTED if command == "accept" else REFUSED, now=now, actor="a")
        case "staging" | "archive" | "production":
            stage = {"staging": "Staging", "archive": "Archived", "production": "Production"}[command]
            promote(ledger, version, stage, now=now)
        case "rollback":
            ledger.rollback("fraud", now=now, **WHO)
        case "canary":
            ledger.start_canary("fraud", version, 0.1, now=now, **WHO)
        case "end":
            ledger.end_canary("fraud", verdict="refused", now=now, **WHO)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(COMMAND, max_size=25))
def test_any_commands(commands: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        oracle = Oracle()
        clock = 100
        served_at: list[tuple[int, int | None]] = []
        start = [("register", 1, 1), ("accept", 1, 1), ("production", 1, 1), ("register", 1, 1), ("accept", 2, 1)]
        for command, version, step in [*start, *commands]:
            clock += step
            before = ledger.revision()
            allowed = oracle.apply(command, version)
            try:
                run(ledger, command, version, clock)
            except VitokError:
                assert not allowed, (command, version)
                assert ledger.revision() == before
                continue
            assert allowed, (command, version)
            assert ledger.revision() > before
            state = ledger.state("fraud")
            assert {item.version: item.stage for item in state.versions} == oracle.stage
            serving = [item.version for item in state.versions if item.stage == "Production"]
            assert serving == ([] if state.production is None else [state.production])
            assert (state.production, list(state.served), state.canary) == (
                oracle.production,
                oracle.served,
                oracle.canary,
            )
            served_at.append((state.time_us, state.production))
        history = ledger.history("fraud")
        assert [entry.time_us for entry in history] == sorted(entry.time_us for entry in history)
        for time_us in range(95, served_at[-1][0] + 2):
            expected = [version for time, version in served_at if time <= time_us]
            assert ledger.at("fraud", time_us) == (expected[-1] if expected else None)
        fresh = Ledger(ledger.path)
        assert fresh.state("fraud") == ledger.state("fraud") == ledger.state("fraud", at=2**61)
        assert fresh.verify().intact
        fresh.close()
        ledger.close()


def test_closed_ledger_says_so(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.close()
    with pytest.raises(StoreError):
        ledger.revision()
