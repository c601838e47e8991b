"""Releases: ledger and records say the same, also when a step is repeated after a crash."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vitok.errors import Conflict, GateRefused, InvalidInput, StoreError
from vitok.loop import Records, ReleaseVerdict, begin_canary, push, releases, roll_back, settle_canary
from vitok.loop.judge import State
from vitok.registry import Registry, at_least, evaluate
from vitok.stats import Estimate

GOOD = evaluate([at_least("average_precision", 0.6, 0.5)])
NONE = Estimate(name="difference", value=0.0, lower=-1.0, upper=1.0, n_obs=10)


def verdict(state: State, candidate: str = "fraud/2", incumbent: str = "fraud/1") -> ReleaseVerdict:
    return ReleaseVerdict(
        state=state,
        reason=f"the log says {state}",
        candidate=candidate,
        incumbent=incumbent,
        time_us=50,
        alert_rate_difference=NONE,
        cost_difference=NONE,
        incumbent_cost=float("nan"),
        n_decisions=10,
        n_failures=0,
        n_outcomes=0,
        n_positives=0,
    )


@dataclasses.dataclass
class House:
    registry: Registry
    records: Records

    def call(self, function: Any, *arguments: Any, **named: Any) -> Any:
        given: dict[str, Any] = {"now": 60, "actor": "loop"} | named
        return function(self.registry, self.records, "fraud", *arguments, **given)

    def outcomes(self) -> list[tuple[str, str | None]]:
        return [(record.record_id, record.outcome) for record in self.records.list()]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Three versions: 1 serves, 2 passed its gate, 3 did not see one."""
    registry = Registry(tmp_path)
    for number in (1, 2, 3):
        registry.register("fraud", {"weights": bytes([number])}, now=number, actor="train")
    for number in (1, 2):
        registry.ledger.record_gate("fraud", number, GOOD, now=5, actor="gate")
    registry.ledger.promote("fraud", 1, "Production", reason="first", actor="ann", now=6)
    yield House(registry, Records(tmp_path))
    registry.close()


def interrupted(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Makes the record's write fail, as when the process dies between ledger and record."""

    def dies(*arguments: Any, **named: Any) -> Any:
        raise StoreError("gone")

    monkeypatch.setattr(Records, name, dies)


@pytest.mark.parametrize(("state", "production", "outcome"), [("accept", 2, "accepted"), ("refuse", 1, "refused")])
def test_a_canary_from_beginning_to_end(house: House, state: State, production: int, outcome: str) -> None:
    record = house.call(begin_canary, 2, 0.1, reason="retrained")
    assert record.is_open
    assert house.call(begin_canary, 2, 0.1, reason="retrained", now=70) == record
    assert house.registry.state("fraud").canary == 2
    raised = house.call(begin_canary, 2, 0.3, reason="more")
    assert [entry.text for entry in raised.timeline] == [
        "10 % of the decisions go to fraud/2: retrained",
        "30 % of the decisions go to fraud/2: more",
    ]
    settled = house.call(settle_canary, verdict(state))
    assert (settled.record_id, settled.outcome) == (record.record_id, outcome)
    assert settled.timeline[-1].text == f"{outcome} by loop: the log says {state}"
    assert settled.timeline[-1].data["n_decisions"] == 10
    model = house.registry.state("fraud")
    assert (model.production, model.canary) == (production, None)
    revision = house.registry.ledger.revision()
    assert house.call(settle_canary, verdict(state), now=99) == settled
    assert house.registry.ledger.revision() == revision
    other: State = "refuse" if state == "accept" else "accept"
    with pytest.raises(Conflict, match="was closed as"):
        house.call(settle_canary, verdict(other))


@pytest.mark.parametrize("name", ["open", "add"])
def test_a_begin_that_died_between_ledger_and_record_is_finished(
    house: House, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patch:
        interrupted(patch, name)
        with pytest.raises(StoreError):
            house.call(begin_canary, 2, 0.1, reason="retrained")
    revision = house.registry.ledger.revision()
    record = house.call(begin_canary, 2, 0.1, reason="retrained", now=61)
    assert house.registry.ledger.revision() == revision
    assert (len(record.timeline), len(house.records.list())) == (1, 1)


@pytest.mark.parametrize("name", ["add", "close"])
@pytest.mark.parametrize("state", ["accept", "refuse"])
def test_a_settlement_that_died_is_finished(
    house: House, monkeypatch: pytest.MonkeyPatch, name: str, state: State
) -> None:
    house.call(begin_canary, 2, 0.1, reason="retrained")
    with monkeypatch.context() as patch:
        interrupted(patch, name)
        with pytest.raises(StoreError):
            house.call(settle_canary, verdict(state))
    revision = house.registry.ledger.revision()
    record = house.call(settle_canary, verdict(state), now=61)
    assert house.registry.ledger.revision() == revision
    assert (len(record.timeline), record.is_open) == (2, False)


def test_a_second_canary_of_a_version_is_a_release_of_its_own(house: House) -> None:
    house.call(begin_canary, 2, 0.1, reason="retrained")
    house.call(settle_canary, verdict("refuse"))
    with pytest.raises(GateRefused):
        house.call(begin_canary, 2, 0.1, reason="again", now=70)
    house.registry.ledger.record_gate("fraud", 2, GOOD, now=75, actor="gate")
    house.call(begin_canary, 2, 0.1, reason="again", now=80)
    house.call(settle_canary, verdict("accept"), now=90)
    assert house.outcomes() == [("release-0001", "refused"), ("release-0002", "accepted")]


def test_what_cannot_be_settled_is_refused(house: House) -> None:
    with pytest.raises(Conflict, match="call begin_canary first"):
        house.call(settle_canary, verdict("accept"))
    house.call(begin_canary, 2, 0.1, reason="retrained")
    with pytest.raises(InvalidInput, match="accept or refuse"):
        house.call(settle_canary, verdict("continue"))
    with pytest.raises(InvalidInput, match="a version of fraud"):
        house.call(settle_canary, verdict("accept", candidate="shop/2"))
    with pytest.raises(Conflict, match="not version 3 as expected"):
        house.call(settle_canary, verdict("accept", incumbent="fraud/3"))
    assert house.registry.state("fraud").canary == 2


def test_an_override_carries_a_canary_without_a_gate(house: House) -> None:
    with pytest.raises(GateRefused):
        house.call(begin_canary, 3, 0.1, reason="try")
    house.call(begin_canary, 3, 0.1, reason="try", override="a drill")
    record = house.call(settle_canary, verdict("accept", candidate="fraud/3"))
    assert record.details["override"] == "a drill"
    assert house.registry.state("fraud").production == 3


def test_a_pushed_version_is_rolled_back(house: House) -> None:
    with pytest.raises(GateRefused):
        house.call(push, 3, override=None)
    pushed = house.call(push, 3, override="a drill")
    assert (pushed.outcome, pushed.details["incumbent"]) == ("pushed", "fraud/1")
    assert house.call(push, 3, override="a drill", now=61) == pushed
    seconds = house.call(roll_back, verdict("refuse", candidate="fraud/3"), expected=3, now=70)
    assert 0 < seconds < 10
    assert house.registry.state("fraud").production == 1
    assert house.call(roll_back, verdict("refuse"), expected=3, now=80) == seconds
    assert house.outcomes() == [("release-0001", "pushed"), ("incident-0001", "fraud/1 serves again")]
    incident, release = house.records.get("incident-0001"), house.records.get("release-0001")
    assert (incident.version, incident.why) == ("fraud/3", "the log says refuse")
    assert release.timeline[-1].text == "rolled back to fraud/1, see incident-0001: the log says refuse"
    with pytest.raises(Conflict, match="not version 2 as expected"):
        house.call(roll_back, verdict("refuse"), expected=2)
    with pytest.raises(Conflict, match="nothing to go back to"):
        house.call(roll_back, verdict("refuse"), expected=1)


@pytest.mark.parametrize("name", ["open", "add", "close"])
def test_a_roll_back_moves_the_pointer_before_it_writes(
    house: House, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    house.call(push, 3, override="a drill")
    with monkeypatch.context() as patch:
        interrupted(patch, name)
        with pytest.raises(StoreError):
            house.call(roll_back, verdict("refuse"), expected=3)
    assert house.registry.state("fraud").production == 1
    revision = house.registry.ledger.revision()
    assert house.call(roll_back, verdict("refuse"), expected=3) >= 0
    assert house.registry.ledger.revision() == revision
    assert not any(record.is_open for record in house.records.list())


def test_a_second_push_and_roll_back_of_a_version_are_recorded_again(house: House) -> None:
    for now in (60, 80):
        house.call(push, 3, override="a drill", now=now)
        house.call(roll_back, verdict("refuse"), expected=3, now=now + 10)
    assert [record.kind for record in house.records.list()] == ["release", "incident"] * 2


def test_canaries_that_a_push_or_a_roll_back_ends_are_closed(house: House) -> None:
    house.call(push, 3, override="a drill")
    house.call(begin_canary, 2, 0.1, reason="retrained", now=61)
    house.call(roll_back, verdict("refuse"), expected=3, now=70)
    assert house.registry.state("fraud").canary is None
    assert ("release-0002", "inconclusive") in house.outcomes()
    house.call(begin_canary, 2, 0.1, reason="again", now=80)
    house.call(push, 2, override=None, now=90)
    assert house.records.get("release-0003").outcome == "inconclusive"


def test_a_version_rolled_back_after_its_canary_keeps_its_outcome(house: House) -> None:
    house.call(begin_canary, 2, 0.1, reason="retrained")
    house.call(settle_canary, verdict("accept"))
    house.call(roll_back, verdict("refuse"), expected=2, now=70)
    record = house.records.get("release-0001")
    assert (record.outcome, len(record.timeline)) == ("accepted", 3)
    assert (
        releases.settle_canary(house.registry, house.records, "fraud", verdict("accept"), now=80, actor="loop")
        == record
    )
