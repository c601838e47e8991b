"""The playbook: the right measure, within bounds, once, taken back in time, and written down."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from vitok.clock import DAY, HOUR
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.loop import Durable
from vitok.loop.incidents import Incidents, events, standing
from vitok.loop.incidents_report import prevention, report
from vitok.loop.playbook import Playbook
from vitok.loop.playbook_actions import Actions, Bound, Order
from vitok.loop.switches import Switches
from vitok.loop.triage import Change, Fact, changes_in_ledger
from vitok.monitoring import Alert
from vitok.registry import Registry, at_least, evaluate

NOW = 100 * DAY


class Fake:
    """Does what it is asked once for a key, and takes it back once."""

    def __init__(self, error: Exception | None = None) -> None:
        self.orders: list[Order] = []
        self.undone: list[str] = []
        self.error = error

    def do(self, order: Order) -> Mapping[str, Any]:
        if self.error is not None:
            raise self.error
        if order.key not in [known.key for known in self.orders]:
            self.orders.append(order)
        return {"before": 0.3}

    def undo(self, order: Order, done: Mapping[str, Any]) -> None:
        assert done == {"before": 0.3}
        if order.key not in self.undone:
            self.undone.append(order.key)


class Knows:
    """Evidence as a test sets it up."""

    def __init__(self) -> None:
        self.facts: list[Fact] = [Fact(question="nulls", finding="ruled out", text="0.1 %", value=0.001, n=9000)]
        self.changed: list[Change] = []
        self.slices: list[Fact] = [Fact(question="country=FR", finding="found", text="half of it", value=0.5, n=900)]
        self.error: StoreError | None = None

    def integrity(self, alert: dict[str, Any], now: int) -> Sequence[Fact]:
        if self.error is not None:
            raise self.error
        return self.facts

    def changes(self, since: int, until: int) -> Sequence[Change]:
        if self.error is not None:
            raise self.error
        return [change for change in self.changed if since <= change.time_us <= until]

    def where(self, alert: dict[str, Any], now: int) -> Sequence[Fact]:
        return self.slices


def alert(number: int = 1, rule: str = "quality", **changes: Any) -> Alert:
    given: dict[str, Any] = {
        "id": number,
        "rule": rule,
        "severity": "critical",
        "system": "fraud",
        "version": "fraud/2",
        "first_seen": NOW - HOUR,
        "raised_at": NOW,
        "value": 0.4,
        "bound": 0.6,
        "reason": "precision 0.4",
        "playbook": "roll back",
        "state": "open",
        "cleared_at": None,
        "cleared_reason": "",
    }
    return Alert(**(given | changes))


def promoted(age: int) -> Change:
    return Change(
        time_us=NOW - HOUR - age, kind="promoted", version="fraud/2", text="by ann: better", undone_by="fraud/1"
    )


class Night:
    """One home with everything a playbook needs."""

    def __init__(self, home: Path, durable: Durable, **changes: Any) -> None:
        self.fakes = {name: Fake() for name in ("rollback", "raise_threshold", "use_rules", "retrain")}
        self.knows = Knows()
        self.incidents = Incidents(home)
        self.switches = Switches(home)
        self.durable = durable
        self.with_(**changes)

    def with_(self, **changes: Any) -> None:
        given = {"actions": Actions(**self.fakes), "durable": self.durable, "switches": self.switches} | changes
        actions = given.pop("actions")
        self.playbook = Playbook(self.incidents, actions, self.knows, **given)

    def done(self) -> dict[str, int]:
        return {name: len(fake.orders) for name, fake in self.fakes.items() if fake.orders}


@pytest.fixture
def night(tmp_path: Path) -> Iterator[Night]:
    with Durable(tmp_path) as durable:
        yield Night(tmp_path, durable)


def told(record: Any) -> list[str]:
    return [entry.data["event"] for entry in record.timeline]


def test_a_young_version_is_rolled_back(night: Night) -> None:
    night.knows.changed = [promoted(2 * HOUR)]
    record = night.playbook.respond(alert(), now=NOW)
    (order,) = night.fakes["rollback"].orders
    assert (order.version, order.to, order.incident) == ("fraud/2", "fraud/1", record.record_id)
    assert night.done() == {"rollback": 1}
    assert told(record) == ["alert", "triage", "intent", "action"]
    assert record.is_open
    assert record.timeline[1].text.endswith("fraud/2 came into force 2 h before it began: by ann: better")


@pytest.mark.parametrize(
    ("change", "young"),
    [
        (promoted(3 * DAY), True),
        (promoted(3 * DAY + 1), False),
        (promoted(-HOUR), True),
        (Change(time_us=NOW - 2 * HOUR, kind="restored", version="fraud/2", text="", undone_by=""), False),
        (Change(time_us=NOW - 2 * HOUR, kind="promoted", version="fraud/3", text="", undone_by="fraud/2"), False),
        (Change(time_us=NOW - 2 * HOUR, kind="promoted", version="fraud/2", text="", undone_by=""), False),
    ],
)
def test_only_a_young_version_that_it_is_about_and_that_followed_another(
    night: Night, change: Change, young: bool
) -> None:
    night.knows.changed = [change]
    night.playbook.respond(alert(), now=NOW)
    assert night.done() == ({"rollback": 1} if young else {"raise_threshold": 1})


def test_quality_without_a_release_raises_thresholds_and_proposes_a_retraining(night: Night) -> None:
    record = night.playbook.respond(alert(), now=NOW)
    (order,) = night.fakes["raise_threshold"].orders
    assert (order.by, order.until) == (0.1, NOW + DAY)
    assert told(record) == ["alert", "triage", "intent", "action", "proposal"]
    assert "it may be done 0 times a day" in record.timeline[-1].text


def test_without_a_model_the_rules_answer_for_a_while(night: Night) -> None:
    night.playbook.respond(alert(rule="fallback", version="all"), now=NOW)
    assert night.fakes["use_rules"].orders[0].until == NOW + 6 * HOUR
    assert night.playbook.expire(now=NOW + 6 * HOUR - 1) == ()
    (ended,) = night.playbook.expire(now=NOW + 6 * HOUR)
    assert night.playbook.expire(now=NOW + 7 * HOUR) == ()
    assert night.fakes["use_rules"].undone == [ended]
    (record,) = night.incidents.open()
    assert record.timeline[-1].text == "loop took back let rules answer: its time is over"


@pytest.mark.parametrize(("rule", "cause"), [("data_drift", "data"), ("absence", "data"), ("other", "data")])
def test_broken_data_are_seen_first_and_answered_by_people(night: Night, rule: str, cause: str) -> None:
    night.knows.changed = [promoted(HOUR)]
    night.knows.facts.append(Fact(question="null share of amount", finding="found", text="40 % null", value=0.4, n=10))
    record = night.playbook.respond(alert(rule=rule), now=NOW)
    assert events(record, "triage")[0].data["cause"] == cause
    assert night.done() == {}
    assert prevention(record) == ("a check in the contract of the feed: null share of amount (40 % null)",)


@pytest.mark.parametrize(("rule", "cause"), [("data_drift", "drift"), ("other", "unknown")])
def test_drift_alone_does_nothing(night: Night, rule: str, cause: str) -> None:
    record = night.playbook.respond(alert(rule=rule), now=NOW)
    assert (events(record, "triage")[0].data["cause"], night.done()) == (cause, {})


def test_evidence_that_is_down_itself_is_a_fact(night: Night) -> None:
    night.knows.error = StoreError("the log is on a full disk")
    record = night.playbook.respond(alert(), now=NOW)
    facts = events(record, "triage")[0].data["integrity"]
    assert [fact["finding"] for fact in facts] == ["unknown", "unknown"]
    assert "could not be looked at: the log is on a full disk" in facts[1]["text"]
    assert night.done() == {"raise_threshold": 1}


def test_the_same_alert_again_does_nothing(night: Night) -> None:
    first = night.playbook.respond(alert(), now=NOW)
    assert night.playbook.respond(alert(), now=NOW + HOUR) == first
    assert night.done() == {"raise_threshold": 1}


def test_an_action_that_stands_in_an_incident_is_not_taken_again(night: Night) -> None:
    night.playbook.respond(alert(), now=NOW)
    record = night.playbook.respond(alert(2, rule="calibration"), now=NOW + HOUR)
    assert night.done() == {"raise_threshold": 1}
    assert "it was done in incident-0001 already and stands" in record.timeline[-3].text


def test_how_often_and_how_far_is_bounded_over_all_incidents(night: Night) -> None:
    night.with_(bounds={"raise_threshold": Bound(per_day=9, per_week=3, by=0.1, total=0.25)})
    versions = [f"fraud/{number}" for number in range(2, 7)]
    for number, version in enumerate(versions, start=1):
        night.playbook.respond(alert(number, version=version), now=NOW + number * DAY)
    orders = night.fakes["raise_threshold"].orders
    assert [round(order.by, 3) for order in orders] == [0.1, 0.1, 0.05]
    last = night.incidents.open()[-1]
    assert "it may be done 3 times a week and was done 3 times" in events(last, "proposal")[0].text
    night.playbook.undo(orders[0].incident, orders[0].key, who="ann", why="calm again", now=NOW + 9 * DAY)
    night.playbook.respond(alert(9, version="fraud/9"), now=NOW + 10 * DAY)
    assert len(orders) == 4
    night.playbook.respond(alert(10, version="fraud/10"), now=NOW + 10 * DAY)
    assert "it may go 0.25 far altogether" in events(night.incidents.open()[-1], "proposal")[0].text


@pytest.mark.parametrize("switch", ["raise_threshold", "all"])
def test_switched_to_propose_only_it_proposes_and_a_person_says_yes(night: Night, switch: str) -> None:
    night.switches.set(switch, propose_only=True, who="ann", why="audit week", now=NOW)
    record = night.playbook.respond(alert(), now=NOW)
    assert night.done() == {}
    proposal = events(record, "proposal")[0]
    assert f"{switch} is only proposed, by ann: audit week" in proposal.text
    key = proposal.data["order"]["key"]
    after = night.playbook.approve(record.record_id, key, who="bob", now=NOW + HOUR)
    assert night.fakes["raise_threshold"].orders[0].until == NOW + HOUR + DAY
    assert after.timeline[-1].text.startswith("bob did raise thresholds by 0.1")
    night.playbook.approve(record.record_id, key, who="bob", now=NOW + 2 * HOUR)
    assert len(night.fakes["raise_threshold"].orders) == 1
    with pytest.raises(NotFound, match="proposal 'x'"):
        night.playbook.approve(record.record_id, "x", who="bob", now=NOW)
    with pytest.raises(InvalidInput):
        night.playbook.approve(record.record_id, key, who=" ", now=NOW)
    night.switches.set(switch, propose_only=False, who="ann", why="over", now=NOW + HOUR)
    night.playbook.respond(alert(2, version="fraud/7"), now=NOW + HOUR)
    assert len(night.fakes["raise_threshold"].orders) == 2
    assert len(night.switches.history()) == 2


def test_what_the_system_cannot_do_is_proposed(night: Night) -> None:
    night.with_(actions=Actions())
    record = night.playbook.respond(alert(), now=NOW)
    assert "fraud cannot raise thresholds by itself" in events(record, "proposal")[0].text
    key = events(record, "proposal")[0].data["order"]["key"]
    with pytest.raises(Conflict, match="do it by hand"):
        night.playbook.approve(record.record_id, key, who="bob", now=NOW)


def test_an_action_that_fails_is_written_down_and_not_repeated(night: Night) -> None:
    night.fakes["raise_threshold"].error = Conflict("somebody else changed the policy")
    record = night.playbook.respond(alert(), now=NOW)
    (failed,) = events(record, "failed")
    assert failed.text == "loop could not raise thresholds: somebody else changed the policy"
    night.fakes["raise_threshold"].error = None
    night.playbook.respond(alert(), now=NOW)
    assert night.done() == {}
    assert standing(record) == ()


def test_undo_by_hand_names_what_stands(night: Night) -> None:
    record = night.playbook.respond(alert(), now=NOW)
    key = standing(record)[0].data["order"]["key"]
    after = night.playbook.undo(record.record_id, key, who="ann", why="wrong", now=NOW + HOUR)
    assert night.fakes["raise_threshold"].undone == [key]
    assert after.timeline[-1].text == "ann took back raise thresholds by 0.1: wrong"
    with pytest.raises(NotFound, match="standing action"):
        night.playbook.undo(record.record_id, key, who="ann", why="wrong", now=NOW + HOUR)


def test_the_report_reads_from_what_to_prevention(night: Night) -> None:
    night.knows.changed = [promoted(2 * HOUR)]
    record = night.playbook.respond(alert(slice="country=FR"), now=NOW)
    night.incidents.note(record.record_id, "the export had flipped labels", who="ann", now=NOW + HOUR)
    night.incidents.resolve(record.record_id, "fraud/1 serves", who="ann", now=NOW + 2 * HOUR)
    text = report(night.incidents.records.get(record.record_id))
    for part in (
        "State: resolved 1970-04-11T02:00:00Z: fraud/1 serves",
        "**quality** of fraud fraud/2, slice country=FR: precision 0.4; size 0.4 against 0.6, since 1970-04-10T23:00",
        "release: fraud/2 came into force 2 h before it began",
        "| nulls | ruled out | 0.1 % | 0.001 | 9,000 |",
        "| country=FR | found | half of it | 0.5 | 900 |",
        "Ruled out: nulls.",
        "- 1970-04-10T21:00:00Z fraud/2: by ann: better",
        "loop did roll back from fraud/2 to fraud/1 (take it back: `playbook/fraud/1/1970-04-10T23:00:00Z/rollback`)",
        "ann: the export had flipped labels",
        "a check in the gate for country=FR, and a canary for every release",
    ):
        assert part in text


def test_changes_come_from_the_ledger(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for number in (1, 2):
        registry.register("fraud", {"weights": bytes([number])}, now=number, actor="train")
        gate = evaluate([at_least("average_precision", 0.6, 0.5)])
        registry.ledger.record_gate("fraud", number, gate, now=number, actor="gate")
        registry.ledger.promote("fraud", number, "Production", reason="better", actor="ann", now=10 * number)
    found = changes_in_ledger(registry.ledger, "fraud", 0, 100)
    assert [(one.version, one.kind, one.undone_by) for one in found] == [
        ("fraud/1", "promoted", ""),
        ("fraud/2", "promoted", "fraud/1"),
    ]
    assert changes_in_ledger(registry.ledger, "fraud", 11, 19) == ()
    registry.ledger.rollback("fraud", reason="bad", actor="ann", now=30)
    found = changes_in_ledger(registry.ledger, "fraud", 21, 100)
    assert {(one.version, one.kind, one.undone_by) for one in found} == {
        ("fraud/2", "rolled_back", ""),
        ("fraud/1", "restored", ""),
    }
    registry.close()


def test_odd_bounds_and_switches_are_refused(tmp_path: Path) -> None:
    for wrong in ({"per_day": -1}, {"by": -0.1}, {"lasts": 0}):
        with pytest.raises(InvalidInput):
            Bound(**wrong)  # type: ignore[arg-type]
    switches = Switches(tmp_path)
    for given in ({"action": "dance"}, {"who": " "}, {"why": ""}):
        with pytest.raises(InvalidInput):
            switches.set(**({"action": "all", "propose_only": True, "who": "a", "why": "b", "now": 0} | given))
    (tmp_path / "records").mkdir(exist_ok=True)
    (tmp_path / "records" / "switches.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        switches.holds("all")
    with pytest.raises(NotFound, match="action 'dance'"):
        Actions().of("dance")


# Answers one alert on the same home again and again; each run dies by SIGKILL at the next place where none died yet.
CHILD = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from vitok.loop import Durable
    from vitok.loop.incidents import Incidents
    from vitok.loop.playbook import Playbook
    from vitok.loop.playbook_actions import Actions
    from vitok.loop.records import Records
    from vitok.loop.switches import Switches
    from tests_playbook import Knows, alert, NOW, HOUR, DAY

    home = Path(sys.argv[1])
    deaths = home / "deaths"

    def at(place):
        died = deaths.read_text().splitlines() if deaths.exists() else []
        if place not in died:
            with deaths.open("a") as file:
                file.write(place + "\\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def around(method):
        def wrapped(self, first, *rest, **given):
            place = f"{method.__name__} {given.get('key')}"
            at(f"before {place}")
            result = method(self, first, *rest, **given)
            at(f"after {place}")
            return result
        return wrapped

    for name in ("open", "add"):
        setattr(Records, name, around(getattr(Records, name)))

    class Ledger:
        # Like a ledger: what has a key is done once, however often it is asked for.
        def do(self, order):
            at("before doing")
            self.note(f"did {order.key}")
            at("after doing")
            return {"before": 0.3}

        def undo(self, order, done):
            self.note(f"undid {order.key}")
            at("after undoing")

        def note(self, line):
            path = home / "ledger"
            lines = path.read_text().splitlines() if path.exists() else []
            with (home / "asked").open("a") as file:
                file.write(line + "\\n")
            if line not in lines:
                with path.open("a") as file:
                    file.write(line + "\\n")

    with Durable(home) as durable:
        playbook = Playbook(Incidents(home), Actions(raise_threshold=Ledger()), Knows(), durable=durable,
                            switches=Switches(home))
        playbook.respond(alert(), now=NOW)
        playbook.expire(now=NOW + DAY)
    """
)


@pytest.mark.slow
def test_kill_9_at_every_place_does_nothing_twice(tmp_path: Path) -> None:
    home, code = tmp_path / "home", tmp_path / "code"
    code.mkdir()
    (code / "tests_playbook.py").write_text(Path(__file__).read_text())
    deaths = 0
    while True:
        command = [sys.executable, "-c", CHILD, str(home)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | {"PYTHONPATH": str(code)},
        )
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        deaths += 1
    key = "playbook/fraud/1/1970-04-10T23:00:00Z/raise_threshold"
    assert (home / "ledger").read_text().splitlines() == [f"did {key}", f"undid {key}"]
    # It was asked again, since nobody had written down that it was done; the key told the ledger.
    assert (home / "asked").read_text().splitlines().count(f"did {key}") > 1
    (record,) = Incidents(home).open()
    keys = [entry.key for entry in record.timeline]
    assert len(set(keys)) == len(keys)
    assert told(record) == ["alert", "triage", "intent", "action", "proposal", "undone"]
    assert deaths == len((home / "deaths").read_text().splitlines()) >= 15


def test_one_that_cannot_be_taken_back_holds_no_other_up(night: Night) -> None:
    class Stuck(Fake):
        def undo(self, order: Order, done: Mapping[str, Any]) -> None:
            if self.error is not None:
                raise self.error
            super().undo(order, done)

    stuck = night.fakes["raise_threshold"] = Stuck()
    night.with_()
    night.playbook.respond(alert(), now=NOW)
    second = night.playbook.respond(alert(2, "fallback", system="shop", version="shop/1"), now=NOW)
    stuck.error = StoreError("the policy cannot be written")
    for minute in range(3):
        night.playbook.expire(now=NOW + 2 * DAY + minute)
    assert len(night.fakes["use_rules"].undone) == 1
    assert standing(night.incidents.records.get(second.record_id)) == ()
    record = night.incidents.records.get("incident-0001")
    (told_of,) = events(record, "stuck")
    assert "the policy cannot be written" in told_of.text
    assert "could not take back raise thresholds" in report(record)
    stuck.error = None
    assert len(night.playbook.expire(now=NOW + 3 * DAY)) == 1


def test_a_person_may_try_again_what_failed_or_was_taken_back(night: Night) -> None:
    fake = night.fakes["raise_threshold"]
    fake.error = StoreError("the disk is full")
    record = night.playbook.respond(alert(), now=NOW)
    (failed,) = events(record, "failed")
    key = failed.data["order"]["key"]
    with pytest.raises(NotFound, match="proposal"):
        night.playbook.approve(record.record_id, "playbook/x", who="ann", now=NOW)
    fake.error = None
    night.playbook.approve(record.record_id, key, who="ann", now=NOW + HOUR)
    record = night.playbook.approve(record.record_id, key, who="ann", now=NOW + HOUR)
    assert [order.key for order in fake.orders] == [f"{key}/again/1"]
    (stands,) = standing(record)
    assert stands.data["actor"] == "ann"
    night.playbook.undo(record.record_id, f"{key}/again/1", who="ann", why="no", now=NOW + HOUR)
    night.playbook.approve(record.record_id, key, who="ann", now=NOW + HOUR)
    assert [order.key for order in fake.orders] == [f"{key}/again/1", f"{key}/again/2"]


@pytest.mark.parametrize("rule", ["calibration", "quality", "coverage"])
def test_probabilities_that_went_off_get_a_new_calibrator_before_a_new_model(night: Night, rule: str) -> None:
    night.fakes["recalibrate"] = Fake()
    asked = Bound(per_day=1, per_week=1)
    night.with_(bounds={"recalibrate": asked, "retrain": asked})
    record = night.playbook.respond(alert(rule=rule), now=NOW)
    first = {"recalibrate": 1} if rule == "calibration" else {}
    assert night.done() == {"raise_threshold": 1, "retrain": 1, **first}
    done = [entry.data["action"] for entry in events(record, "action")]
    assert done == ["raise_threshold", *first, "retrain"]


def test_no_calibrator_mends_broken_data_or_stands_for_a_young_version(night: Night) -> None:
    night.fakes["recalibrate"] = Fake()
    night.with_(bounds={"recalibrate": Bound(per_day=9, per_week=9)})
    night.knows.changed = [promoted(2 * HOUR)]
    night.playbook.respond(alert(rule="calibration"), now=NOW)
    assert night.done() == {"rollback": 1}


@pytest.mark.parametrize("rule", ["data_drift", "data_drift_7d"])
def test_drift_of_the_inputs_puts_no_release_at_fault(night: Night, rule: str) -> None:
    night.knows.changed = [promoted(2 * HOUR)]
    record = night.playbook.respond(alert(rule=rule), now=NOW)
    assert night.done() == {}
    assert record.timeline[1].data["cause"] == "drift"


def test_drift_of_the_scores_of_a_young_version_is_its_own(night: Night) -> None:
    night.knows.changed = [promoted(2 * HOUR)]
    night.playbook.respond(alert(rule="prediction_drift_7d"), now=NOW)
    assert night.done() == {"rollback": 1}


def test_a_retraining_may_be_asked_for_again_in_the_same_incident(night: Night) -> None:
    night.with_(bounds={"retrain": Bound(per_day=5, per_week=5)})
    night.playbook.respond(alert(1), now=NOW)
    record = night.playbook.respond(alert(2, rule="calibration", first_seen=NOW), now=NOW + HOUR)
    assert night.done() == {"raise_threshold": 1, "retrain": 2}
    assert "stands" in next(entry for entry in events(record, "proposal")).text
