"""What waits for somebody's word, and what is filed with which incident."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tests.console.conftest import Home

from vitok.clock import DAY, HOUR
from vitok.console.incident_reading import home_option, incident_of, incident_story, incidents, waiting
from vitok.errors import Conflict, InvalidInput, NotFound
from vitok.loop import Actions, Durable, Incidents, Playbook, Records, Switches
from vitok.loop.playbook_actions import Order
from vitok.monitoring import Alert
from vitok.settings import current

ALERT = Alert(
    id=5,
    rule="quality",
    severity="critical",
    system="fraud",
    version="fraud/2",
    first_seen=DAY,
    raised_at=DAY,
    value=0.4,
    bound=0.6,
    reason="precision 0.4",
    playbook="roll back",
    state="open",
    cleared_at=None,
    cleared_reason="",
)


class Nothing:
    """Evidence of nothing."""

    def integrity(self, alert: dict[str, Any], now: int) -> tuple[()]:
        return ()

    def changes(self, since: int, until: int) -> tuple[()]:
        return ()

    def where(self, alert: dict[str, Any], now: int) -> tuple[()]:
        return ()


class Threshold:
    """Fails the first time, where it is told to."""

    def __init__(self, *, fails: bool) -> None:
        self.fails = fails

    def do(self, order: Order) -> dict[str, Any]:
        if self.fails:
            self.fails = False
            raise Conflict("the service is not there")
        return {}

    def undo(self, order: Order, done: Any) -> None: ...


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_done_or_taken_back_waits_for_nobody(tmp_path: Path, *, fails: bool) -> None:
    filed, durable = Incidents(tmp_path), Durable(tmp_path)
    actions = Actions(raise_threshold=Threshold(fails=fails))
    playbook = Playbook(filed, actions, Nothing(), durable=durable, switches=Switches(tmp_path))
    record = playbook.respond(ALERT, now=DAY + HOUR)

    def asked() -> list[str]:
        return [entry.data["action"] for entry in waiting(filed.records.get(record.record_id))]

    # Retraining is only ever proposed; what failed waits beside it.
    assert asked() == ["retrain"] + ["raise_threshold"] * fails
    story = incident_story(tmp_path, record.record_id)
    if fails:
        playbook.approve(record.record_id, story.proposals[-1].key, who="ann", now=DAY + 2 * HOUR)
        assert asked() == ["retrain"]
    (step,) = incident_story(tmp_path, record.record_id).standing
    assert step.until is not None
    # Its time is over: it could be done anew, but nobody is waited for.
    assert playbook.expire(now=step.until + 1) == (step.key,)
    assert asked() == ["retrain"]
    assert incident_story(tmp_path, record.record_id).standing == ()
    filed.resolve(record.record_id, "the labels were late", who="ann", now=3 * DAY)
    assert asked() == []
    durable.close()


def test_alert_is_found_in_the_incident_it_was_filed_with(home: Home) -> None:
    (first, second) = sorted(Records(home.folder).list("incident"), key=lambda record: record.record_id)
    assert incident_of(first, 1, first.timeline[0].data["alert"]["first_seen"])
    assert not incident_of(first, 1, 7)
    assert not incident_of(second, 1, first.timeline[0].data["alert"]["first_seen"])
    # As records were written before incidents held their alerts.
    plain = dataclasses.replace(first, timeline=(), details={"alert": 3}, key="alert/3/99")
    assert incident_of(plain, 3, 99)
    assert not incident_of(plain, 3, 98)


def test_merged_incident_names_the_one_that_goes_on(tmp_path: Path) -> None:
    filed = Incidents(tmp_path)
    one = filed.report(ALERT, now=DAY)
    other = filed.report(dataclasses.replace(ALERT, id=6, version="fraud/1"), now=DAY)
    filed.merge(other.record_id, one.record_id, who="ann", now=2 * DAY)
    story = incident_story(tmp_path, other.record_id)
    assert (story.merged_into, story.commands) == (one.record_id, ())
    seen = incidents(tmp_path)
    assert [line.record.record_id for line in seen.open] == [one.record_id]
    assert seen.n_resolved == 1
    assert str(seen).startswith("1 incident open, 1 resolved")


def test_command_names_a_home_that_is_not_the_usual_one(tmp_path: Path) -> None:
    assert home_option(tmp_path / "it's") == f" --home '{tmp_path}/it'\"'\"'s'"
    assert home_option(current().home / "fraud") == ""


def test_what_is_no_incident_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="incident-0003"):
        incident_story(tmp_path, "release-0001")
    with pytest.raises(NotFound, match="incident-0001"):
        incident_story(tmp_path, "incident-0001")
