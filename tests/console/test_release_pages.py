"""The page of releases: the history, the steps of a plan, the gates, and how far a rehearsal has come."""

import contextlib
import dataclasses
from pathlib import Path

import pytest
from tests.console.conftest import START, Home, get
from tests.console.test_pages import check_markup

from vitok.clock import DAY
from vitok.console.release_reading import rehearsal, step_states
from vitok.loop import PairedJudge
from vitok.loop.release_book import Release, ReleaseBook, ReleaseEvent
from vitok.loop.release_plan import PlannedJudge, ReleasePlan, Step


def test_releases_tell_the_history(home: Home) -> None:
    text = check_markup(get(home.folder, "/releases").text).text
    assert "canary of fraud/2 beside fraud/1" in text
    assert "release, open" in text
    assert "25 % of the decisions go to fraud/2" in text
    assert "ledger intact: 8 entries" in text
    assert "fraud/2 canary at 25 %, 5 Jul 2018 00:00 until now" in text


def test_releases_show_plans_gates_and_the_canary(home: Home) -> None:
    page = get(home.folder, "/releases").text
    text = check_markup(page).text
    assert "It waits: more outcomes." in text
    assert 'aria-current="step"' in page
    assert "vitok releases approve plan-0001 --by YOUR-NAME --reason 'WHY' --home" in text
    assert "The canary so far 25 % of the customers since 5 Jul 2018 00:00" in text
    assert "fraud/3 refused 1 of 2 average precision: 0.1 is below 0.5" in text
    assert "incident-0001" not in text


def planned(folder: Path, *, status: str, entered: tuple[str, ...], position: dict[str, object] | None) -> Release:
    """A release by a plan with a canary and full traffic, as `Releases` leaves it."""
    steps = (
        Step(name="canary 10 %", kind="canary", share=0.1, judges=("canary",)),
        Step(name="full", kind="full", share=1.0, judges=("canary",)),
    )
    made = ReleasePlan(steps=steps, judges={"canary": PlannedJudge(make=PairedJudge)})  # type: ignore[arg-type]
    with contextlib.closing(ReleaseBook(folder)) as book:
        release = book.begin("fraud", 2, 1, made, actor="loop", reason="retrained", now=START)
        with book.changing(release) as writing:
            writing.set(step=1 if "full" in entered else 0, entered_at=START, position=position)
            for name in entered:
                share = 1 if name == "full" else 0.1
                text = f"{name} of fraud/2 since then"
                writing.tell(ReleaseEvent(at=START, kind="entered", who="loop", text=text, data={"share": share}))
            verdict = {"state": "refuse", "reason": "dearer", "n_decisions": 4321, "n_outcomes": 900, "n_positives": 7}
            writing.judged("canary", {}, verdict)
            if status != "running":
                writing.close(status, now=START + DAY)  # type: ignore[arg-type]
        return book.get(release.release_id)


@pytest.mark.parametrize(
    ("status", "entered", "states"),
    [
        ("running", ("canary 10 %",), ("here", "")),
        ("running", ("canary 10 %", "full"), ("done", "here")),
        ("refused", ("canary 10 %",), ("failed", "")),
        ("refused", ("full",), ("left out", "failed")),
        ("inconclusive", ("canary 10 %",), ("failed", "")),
        ("finished", ("canary 10 %", "full"), ("done", "done")),
    ],
)
def test_steps_of_a_plan_say_how_they_went(
    tmp_path: Path, status: str, entered: tuple[str, ...], states: tuple[str, ...]
) -> None:
    release = planned(tmp_path, status=status, entered=entered, position=None)
    assert step_states(release) == states
    page = get(tmp_path, "/releases").text
    text = check_markup(page).text
    assert "canary refuse dearer 4 321 900 7" in text
    assert ("left out" in text) == ("left out" in states)
    assert (f"ended here: {status}" in text) == ("failed" in states)


@pytest.mark.parametrize(
    ("seen", "matured", "told"),
    [
        (-2 * DAY, -3 * DAY, "they have come to 29 Jun 2018 00:00, of 1 Jul 2018 00:00."),
        (0, -1 * DAY, "the outcomes of those from 30 Jun 2018 00:00 on are not in yet."),
        (0, 0, "which both versions have answered again."),
    ],
)
def test_a_rehearsal_says_how_far_it_has_come(tmp_path: Path, seen: int, matured: int, told: str) -> None:
    position: dict[str, object] = {"log": None, "seen": START + seen, "matured": START + matured, "until": START}
    release = planned(tmp_path, status="running", entered=("canary 10 %",), position=position)
    assert rehearsal(release).endswith(told)
    assert told in check_markup(get(tmp_path, "/releases").text).text
    assert rehearsal(dataclasses.replace(release, position=None)) == ""


def test_a_push_past_the_canary_rehearses_nothing(tmp_path: Path) -> None:
    position: dict[str, object] = {"log": None, "seen": START, "matured": START, "until": START}
    assert rehearsal(planned(tmp_path, status="refused", entered=("full",), position=position)) == ""
