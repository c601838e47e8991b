"""Incidents: filed once, merged, opened again, and open until somebody says how they were resolved."""

from pathlib import Path
from typing import Any

import pytest

from vitok.clock import DAY, HOUR
from vitok.errors import Conflict, InvalidInput, NotFound
from vitok.loop.incidents import Incidents, events
from vitok.monitoring import Alert


def alert(number: int = 1, **changes: Any) -> Alert:
    given: dict[str, Any] = {
        "id": number,
        "rule": "quality",
        "severity": "critical",
        "system": "fraud",
        "version": "fraud/2",
        "first_seen": 0,
        "raised_at": 0,
        "value": 0.4,
        "bound": 0.6,
        "reason": "precision 0.4",
        "playbook": "roll back",
        "state": "open",
        "cleared_at": None,
        "cleared_reason": "",
    }
    return Alert(**(given | changes))


@pytest.fixture
def incidents(tmp_path: Path) -> Incidents:
    return Incidents(tmp_path)


def test_an_alert_that_clears_leaves_the_incident_open_until_it_is_resolved(incidents: Incidents) -> None:
    first = incidents.report(alert(), now=HOUR)
    incidents.quiet(alert(state="cleared", cleared_at=2 * HOUR, cleared_reason="2 quiet windows"), now=2 * HOUR)
    (still,) = incidents.open(system="fraud")
    assert (still.record_id, still.is_open) == (first.record_id, True)
    incidents.note(first.record_id, "the terminal feed was late", who="ann", now=3 * HOUR)
    resolved = incidents.resolve(first.record_id, "feed mended", who="ann", now=4 * HOUR)
    assert (resolved.outcome, resolved.closed) == ("feed mended", 4 * HOUR)
    assert [entry.data["event"] for entry in resolved.timeline] == ["alert", "quiet", "note", "resolved"]
    assert incidents.resolve(first.record_id, "feed mended", who="ann", now=5 * HOUR) == resolved
    with pytest.raises(Conflict, match="closed as 'feed mended'"):
        incidents.resolve(first.record_id, "otherwise", who="ann", now=5 * HOUR)


def test_the_same_alert_is_filed_once(incidents: Incidents) -> None:
    first = incidents.report(alert(), now=HOUR)
    assert incidents.report(alert(), now=9 * DAY) == first
    incidents.quiet(alert(), now=2 * HOUR)
    assert incidents.quiet(alert(), now=3 * HOUR) == incidents.records.get(first.record_id)
    assert incidents.quiet(alert(7), now=0) is None


@pytest.mark.parametrize(
    ("changes", "after", "joins"),
    [
        ({}, 5 * DAY, True),
        ({"rule": "calibration"}, HOUR, True),
        ({"rule": "absence", "version": "all"}, HOUR, True),
        ({"rule": "calibration"}, 7 * HOUR, False),
        ({"rule": "calibration", "version": "fraud/1"}, HOUR, False),
        ({"system": "shop"}, HOUR, False),
        ({"slice": "country=FR"}, 9 * HOUR, False),
    ],
)
def test_what_belongs_together_is_one_incident(
    incidents: Incidents, changes: dict[str, Any], after: int, joins: bool
) -> None:
    first = incidents.report(alert(), now=HOUR)
    second = incidents.report(alert(2, **changes), now=HOUR + after)
    assert (second.record_id == first.record_id) is joins
    assert len(events(second, "alert")) == 1 + joins


@pytest.mark.parametrize(("after", "again"), [(2 * DAY, True), (2 * DAY + 1, False)])
def test_what_comes_back_soon_opens_the_incident_again(incidents: Incidents, after: int, again: bool) -> None:
    first = incidents.report(alert(), now=0)
    incidents.resolve(first.record_id, "mended", who="ann", now=HOUR)
    second = incidents.report(alert(2), now=HOUR + after)
    assert (second.record_id == first.record_id) is again
    assert second.is_open
    if again:
        (entry,) = events(second, "reopened")
        assert (entry.text, entry.data["outcome"]) == ("opened again: quality is back: precision 0.4", "mended")
        assert (
            incidents.resolve(first.record_id, "mended for good", who="ann", now=9 * DAY).outcome == "mended for good"
        )
    other = incidents.report(alert(3, rule="other", version="fraud/9"), now=HOUR + after)
    assert other.record_id not in (first.record_id, second.record_id)


def test_duplicates_are_merged_and_what_comes_later_goes_to_the_one_that_is_left(incidents: Incidents) -> None:
    first = incidents.report(alert(), now=0)
    second = incidents.report(alert(2, version="fraud/1"), now=0)
    target = incidents.merge(second.record_id, first.record_id, who="ann", now=HOUR)
    assert target.record_id == first.record_id
    assert incidents.records.get(second.record_id).outcome == f"merged into {first.record_id}"
    assert incidents.follow(second.record_id) == target
    later = incidents.report(alert(3, version="fraud/1"), now=5 * DAY)
    assert later.record_id == first.record_id
    assert incidents.report(alert(2, version="fraud/1"), now=5 * DAY) == later
    with pytest.raises(InvalidInput, match="be another incident"):
        incidents.merge(first.record_id, second.record_id, who="ann", now=HOUR)
    incidents.resolve(first.record_id, "mended", who="ann", now=DAY)
    third = incidents.report(alert(4, system="shop"), now=0)
    with pytest.raises(Conflict, match="is resolved"):
        incidents.merge(third.record_id, first.record_id, who="ann", now=HOUR)


def test_a_step_after_a_crash_finishes_what_was_begun(incidents: Incidents) -> None:
    # As where the process dies between the record and its first entry.
    incidents.records.open(
        "incident",
        "quality: precision 0.4",
        system="fraud",
        version="fraud/2",
        now=0,
        why="critical alert",
        details={"fingerprint": alert().fingerprint},
        key="alert/fraud/1",
    )
    found = incidents.report(alert(), now=0)
    assert (found.record_id, len(found.timeline)) == ("incident-0001", 1)


def test_somebody_is_named_and_the_incident_exists(incidents: Incidents) -> None:
    record = incidents.report(alert(), now=0)
    for wrong in (
        lambda: incidents.note(record.record_id, "x", who=" ", now=0),
        lambda: incidents.resolve(record.record_id, "x", who="", now=0),
        lambda: incidents.resolve(record.record_id, " ", who="ann", now=0),
    ):
        with pytest.raises(InvalidInput):
            wrong()
    with pytest.raises(NotFound, match="incident-0009"):
        incidents.note("incident-0009", "x", who="ann", now=0)


def test_a_number_that_comes_again_is_another_alert(incidents: Incidents) -> None:
    first = incidents.report(alert(), now=0)
    again = incidents.report(alert(first_seen=DAY, raised_at=DAY), now=DAY)
    assert again.record_id == first.record_id
    assert len(events(again, "alert")) == 2
    other = incidents.report(alert(rule="absence", system="shop"), now=DAY)
    assert other.record_id != first.record_id
    assert len(events(incidents.report(alert(), now=2 * DAY), "alert")) == 2


def test_an_alert_about_no_system_is_filed(incidents: Incidents) -> None:
    record = incidents.report(alert(rule="watch_silent", system="", version="all", value=float("inf")), now=0)
    assert (record.system, record.is_open) == ("all", True)


def test_words_of_a_person_lead_nowhere(incidents: Incidents) -> None:
    record = incidents.report(alert(), now=0)
    incidents.resolve(record.record_id, "merged into main after review", who="ann", now=HOUR)
    assert incidents.follow(record.record_id).record_id == record.record_id
    assert incidents.report(alert(2, first_seen=DAY), now=DAY).is_open
    with pytest.raises(InvalidInput, match="merge"):
        incidents.resolve(record.record_id, f"merged into {record.record_id}", who="ann", now=DAY)


def test_what_was_merged_into_a_merged_one_goes_on_in_the_last(incidents: Incidents) -> None:
    rules = ("quality", "absence", "fallback")
    one, two, three = (
        incidents.report(alert(number, rule=rule, system=f"s{number}"), now=0) for number, rule in enumerate(rules)
    )
    incidents.merge(one.record_id, two.record_id, who="ann", now=1)
    incidents.merge(two.record_id, three.record_id, who="ann", now=2)
    back = incidents.report(alert(9, rule="quality", system="s0", first_seen=5), now=30 * DAY)
    assert back.record_id == three.record_id
    with pytest.raises(Conflict, match="was closed as"):
        incidents.merge(two.record_id, incidents.report(alert(10, system="s9"), now=0).record_id, who="ann", now=3)
