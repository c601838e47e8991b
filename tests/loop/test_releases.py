"""Releases: ledger and records say the same, also when a step is repeated after a crash."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vitok.errors import Conflict, GateRefused, StoreError
from vitok.loop import Records, ReleaseVerdict, push, roll_back, rollback_seconds
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


def test_a_key_makes_a_roll_back_once_whatever_came_since(house: House) -> None:
    house.call(push, 3, override="a drill")
    seconds = house.call(roll_back, verdict("refuse"), expected=3, now=70, key="order/1")
    house.call(push, 3, override="a drill", now=80)
    assert house.call(roll_back, verdict("refuse"), expected=3, now=90, key="order/1") == seconds
    assert house.registry.state("fraud").production == 3
    entry = house.registry.ledger.entry("fraud", "order/1")
    assert rollback_seconds(house.records, "fraud") == {entry.seq: seconds}
    assert rollback_seconds(house.records, "shop") == {}
