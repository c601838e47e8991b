"""Delivery: who is told what and when, once; what holds an alert back; messages that survive failures and kill -9."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from vitok.clock import DAY, HOUR, MINUTE, SECOND
from vitok.errors import Conflict, InvalidInput, NotFound, ServiceError
from vitok.monitoring import AlertRule, Alerts
from vitok.monitoring.delivery import Delivery, DeliveryRules, Escalation, Route
from vitok.monitoring.outbox import Notice, Retry

START = 100 * DAY


class Fake:
    """Keeps what it is sent; fails as often as it is told."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.notices: list[Notice] = []

    def send(self, notice: Notice) -> None:
        if self.failures:
            self.failures -= 1
            raise ServiceError("the pager is out")
        self.notices.append(notice)

    @property
    def titles(self) -> list[str]:
        return [notice.title for notice in self.notices]


class Desk:
    """Alerts of three severities, a pager, a chat and a mailbox."""

    def __init__(self, folder: Path, **rules: Any) -> None:
        self.pager, self.chat, self.mail = Fake(), Fake(), Fake()
        self.alerts = Alerts(folder / "alerts.sqlite")
        usual = DeliveryRules.usual(critical=["pager"], warning=["chat"], info=["mail"])
        channels = {"pager": self.pager, "chat": self.chat, "mail": self.mail}
        self.delivery = Delivery(
            folder / "delivery.sqlite", self.alerts, channels, DeliveryRules(**({"routes": usual.routes} | rules))
        )
        self.windows: dict[Any, int] = {}

    def see(self, severity: Any, *, firing: bool = True, rule: str = "", system: str = "fraud", at: int = 0) -> int:
        name = rule or f"{severity}_rule"
        one = AlertRule(name=name, severity=severity, playbook="roll back", windows=1, clear_after=1, every=1)
        end = self.windows[name, system] = max(self.windows.get((name, system), 0) + 1, START + at - MINUTE)
        changed = self.alerts.observe(
            one,
            system=system,
            version="fraud/2",
            window_end=end,
            firing=firing,
            value=0.312345,
            bound=0.2,
            reason="cost rose",
            now=end,
        )
        assert changed is not None
        return changed.id

    def tick(self, after: int) -> str:
        return str(self.delivery.tick(START + after))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_critical_at_once_warnings_in_groups_info_once_a_day(desk: Desk) -> None:
    desk.tick(0)
    desk.see("critical")
    desk.see("warning", system="shop")
    desk.see("warning", rule="drift", system="shop")
    desk.see("info")
    desk.tick(SECOND)
    assert desk.pager.titles == ["CRITICAL critical_rule of fraud fraud/2: cost rose"]
    assert (desk.chat.titles, desk.mail.titles) == ([], [])
    desk.tick(31 * SECOND)
    assert desk.chat.titles == ["2 alerts of shop: drift, warning_rule"]
    desk.tick(7 * HOUR - 1)
    assert desk.mail.titles == []
    desk.tick(7 * HOUR)
    desk.tick(8 * HOUR)
    (summary,) = desk.mail.notices
    assert summary.title.endswith("4 new alerts, 0 of them cleared; 0 older ones still open")
    assert "info info_rule: cost rose" in summary.body
    desk.tick(31 * HOUR)
    assert desk.mail.titles[1].endswith("0 new alerts, 0 of them cleared; 4 older ones still open")


def test_a_message_names_system_version_slice_size_since_when_and_the_step(desk: Desk) -> None:
    desk.see("critical")
    desk.tick(0)
    (notice,) = desk.pager.notices
    for part in ("system fraud, version fraud/2, slice all", "size 0.3123 against 0.2", "since 1970-04-10T23:59:00Z"):
        assert part in notice.body
    assert notice.body.endswith("next: roll back")
    (alert,) = desk.alerts.open()
    assert notice.key == alert.fingerprint == notice.alerts[0]["fingerprint"]


def test_each_alert_is_told_once_and_so_is_its_end(desk: Desk) -> None:
    desk.see("critical")
    for second in range(5):
        desk.tick(second * SECOND)
    desk.see("critical", firing=False)
    for second in range(5, 9):
        desk.tick(second * SECOND)
    assert [(notice.kind, notice.key) for notice in desk.pager.notices] == [
        ("raised", desk.pager.notices[0].key),
        ("cleared", desk.pager.notices[0].key),
    ]
    assert desk.pager.titles[1].startswith("CLEARED critical_rule of fraud fraud/2: 1 quiet windows")
    assert desk.delivery.followed() == ()


def test_one_that_ends_before_it_was_told_is_only_summed_up(desk: Desk) -> None:
    desk.tick(0)
    desk.see("warning")
    desk.tick(SECOND)
    desk.see("warning", firing=False)
    desk.tick(HOUR)
    assert desk.chat.titles == []
    desk.tick(8 * HOUR)
    assert "1 new alerts, 1 of them cleared" in desk.mail.titles[0]


def test_the_same_again_within_the_hour_is_held(desk: Desk) -> None:
    desk.see("critical")
    desk.tick(0)
    desk.see("critical", firing=False)
    desk.tick(MINUTE)
    desk.see("critical")
    desk.tick(2 * MINUTE)
    assert [notice.kind for notice in desk.pager.notices] == ["raised", "cleared"]
    assert desk.delivery.followed()[0].held.startswith("the same was told at")
    desk.tick(HOUR)
    assert [notice.kind for notice in desk.pager.notices] == ["raised", "cleared", "raised"]


def test_a_silence_holds_what_matches_until_it_ends(desk: Desk) -> None:
    silences = desk.delivery.silences
    silence = silences.add(
        {"system": "fraud", "rule": "critical_rule"}, until=START + HOUR, who="ann", why="known outage", now=START
    )
    desk.see("critical")
    desk.see("critical", rule="other")
    desk.tick(0)
    assert desk.pager.titles == ["CRITICAL other of fraud fraud/2: cost rose"]
    held = next(one.held for one in desk.delivery.followed() if one.held)
    assert held == "silenced until 1970-04-11T01:00:00Z by ann: known outage"
    desk.tick(HOUR - 1)
    assert "CRITICAL critical_rule of fraud fraud/2: cost rose" not in desk.pager.titles
    desk.tick(HOUR)
    assert "CRITICAL critical_rule of fraud fraud/2: cost rose" in desk.pager.titles
    assert str(silence).startswith("1: system=fraud, rule=critical_rule from 1970-04-11T00:00:00Z until")
    other = silences.add({"system": "shop"}, until=START + 9 * HOUR, who="ann", why="move", now=START + HOUR)
    assert silences.all(at=START + 2 * HOUR) == (other,)
    ended = silences.end(other.id, who="bob", now=START + 2 * HOUR)
    assert (ended.ends_at, ended.ended_by) == (START + 2 * HOUR, "bob")
    assert silences.end(other.id, who="carl", now=START + 3 * HOUR) == ended
    with pytest.raises(NotFound, match="silence 99"):
        silences.end(99, who="bob", now=START)


@pytest.mark.parametrize(
    ("matchers", "changes"),
    [
        ({}, {}),
        ({"weather": "x"}, {}),
        ({"rule": ""}, {}),
        ({"rule": "x"}, {"who": " "}),
        ({"rule": "x"}, {"why": ""}),
        ({"rule": "x"}, {"until": 0}),
        ({"rule": "x"}, {"since": 99}),
    ],
)
def test_odd_silences_are_refused(desk: Desk, matchers: dict[str, str], changes: dict[str, Any]) -> None:
    given: dict[str, Any] = {"until": 5, "who": "ann", "why": "x", "now": 1} | changes
    with pytest.raises(InvalidInput):
        desk.delivery.silences.add(matchers, **given)
    assert desk.delivery.silences.all() == ()


def test_a_critical_alert_keeps_the_warnings_of_its_system_back(desk: Desk) -> None:
    critical = desk.see("critical")
    desk.see("warning")
    desk.see("warning", system="shop")
    desk.tick(0)
    desk.tick(MINUTE)
    assert desk.chat.titles == ["WARNING warning_rule of shop fraud/2: cost rose"]
    assert [one.held for one in desk.delivery.followed() if one.held] == [
        f"inhibited by alert {critical}, critical_rule"
    ]
    desk.see("critical", firing=False)
    desk.tick(2 * MINUTE)
    assert desk.chat.titles[-1] == "WARNING warning_rule of fraud fraud/2: cost rose"


def test_who_does_not_acknowledge_is_told_again_and_louder(tmp_path: Path) -> None:
    steps = (Escalation(after=10 * MINUTE, channels=("pager",)), Escalation(after=HOUR, channels=("chat", "mail")))
    desk = Desk(tmp_path, routes=(Route(severity="critical", channels=("pager",), escalations=steps),))
    first, second = desk.see("critical"), desk.see("critical", rule="other")
    desk.tick(0)
    desk.delivery.acknowledge(second, who="ann", now=START + MINUTE)
    desk.tick(10 * MINUTE - 1)
    assert len(desk.pager.notices) == 2
    desk.tick(10 * MINUTE)
    desk.tick(HOUR)
    desk.tick(3 * HOUR)
    assert [notice.kind for notice in desk.pager.notices] == ["raised", "raised", "escalated"]
    assert desk.chat.titles == desk.mail.titles
    assert desk.chat.titles[0].startswith("NOT ACKNOWLEDGED since 1970-04-11T00:00:00Z (level 2): CRITICAL")
    desk.see("critical", firing=False, at=4 * HOUR)
    desk.tick(4 * HOUR)
    assert [fake.notices[-1].kind for fake in (desk.pager, desk.chat, desk.mail)] == ["cleared"] * 3
    with pytest.raises(Conflict, match="by ann already"):
        desk.delivery.acknowledge(second, who="bob", now=START)
    desk.delivery.acknowledge(second, who="ann", now=START)
    with pytest.raises(NotFound, match="followed alert 77"):
        desk.delivery.acknowledge(77, who="ann", now=START)
    assert first != second


def test_failures_are_tried_again_with_longer_pauses_and_given_up_in_the_open(tmp_path: Path) -> None:
    desk = Desk(tmp_path, retry=Retry(first=SECOND, longest=4 * SECOND, attempts=5, jitter=0))
    desk.pager.failures = 99
    desk.see("critical")
    told = [desk.tick(second * SECOND) for second in range(16)]
    tried = [second for second, text in enumerate(told) if text != "0 sent, 0 to be tried again, 0 given up"]
    # After 1, 2, 4 and again 4 seconds; then it is given up, and the escalation, which nobody need wait for, begins.
    assert tried[:5] == [0, 1, 3, 7, 11]
    assert told[11].endswith("1 given up")
    (dead,) = desk.delivery.dead()
    assert str(dead).endswith("CRITICAL critical_rule of fraud fraud/2: cost rose: the pager is out")
    assert desk.chat.titles[0].startswith("NOT ACKNOWLEDGED")
    desk.pager.failures = 0
    desk.delivery.outbox.again(dead.id, now=START + HOUR)
    desk.tick(HOUR)
    assert "CRITICAL critical_rule of fraud fraud/2: cost rose" in desk.pager.titles
    with pytest.raises(NotFound, match="dead message"):
        desk.delivery.outbox.again(dead.id, now=START)
    counts = {(one.labels["channel"], one.labels["state"]): one.value for one in desk.delivery.samples()}
    assert counts["chat", "sent"] == 1


def test_one_dead_channel_does_not_hold_the_others(tmp_path: Path) -> None:
    desk = Desk(tmp_path, routes=(Route(severity="critical", channels=("pager", "chat")),))
    desk.pager.failures = 2
    desk.see("critical")
    assert desk.tick(0) == "1 sent, 1 to be tried again, 0 given up"
    assert desk.tick(5 * MINUTE) == "0 sent, 1 to be tried again, 0 given up"
    assert desk.tick(10 * MINUTE) == "1 sent, 0 to be tried again, 0 given up"
    assert desk.pager.titles == desk.chat.titles


def test_pauses_double_and_differ_from_message_to_message() -> None:
    retry = Retry()
    pauses = [retry.pause("a", attempt) for attempt in range(1, 12)]
    assert all(
        0.5 * min(HOUR, 30 * SECOND * 2**place) <= pause <= min(HOUR, 30 * SECOND * 2**place)
        for place, pause in enumerate(pauses)
    )
    assert retry.pause("b", 1) != pauses[0] == retry.pause("a", 1)
    for wrong in ({"first": 0}, {"attempts": 0}, {"jitter": 1.5}):
        with pytest.raises(InvalidInput):
            Retry(**wrong)


# Tells a file instead of people; dies by SIGKILL where argv says.
CHILD = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from vitok.clock import DAY, MINUTE
    from vitok.monitoring import Alerts
    from vitok.monitoring import delivery as room
    from vitok.monitoring import outbox

    folder, deadly, now = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    class Wall:
        def send(self, notice):
            if deadly == "before sending":
                die()
            with (folder / "wall").open("a") as file:
                file.write(notice.key + "\\n")
                file.flush()
            if deadly == "after sending":
                die()

    alerts = Alerts(folder / "alerts.sqlite")
    rules = room.DeliveryRules(routes=(room.Route(severity="critical", channels=("wall",)),))
    delivery = room.Delivery(folder / "delivery.sqlite", alerts, {"wall": Wall()}, rules)
    if deadly == "before writing down":
        room.Delivery._tell = lambda *_: die()
    if deadly == "after writing down":
        outbox.Outbox.deliver = lambda *_, **__: die()
    delivery.tick(now)
    """
)


@pytest.mark.parametrize(
    ("deadly", "times"),
    [("before writing down", 1), ("after writing down", 1), ("before sending", 1), ("after sending", 2)],
)
def test_kill_9_loses_no_message_and_the_key_tells_a_second_one(tmp_path: Path, deadly: str, times: int) -> None:
    desk = Desk(tmp_path)
    desk.see("critical")
    (alert,) = desk.alerts.open()
    (tmp_path / "delivery.sqlite").unlink()

    def child(where: str, now: int) -> int:
        command = [sys.executable, "-c", CHILD, str(tmp_path), where, str(now)]
        return subprocess.run(command, timeout=60, check=False).returncode

    assert child(deadly, START) == -signal.SIGKILL
    # Somebody else may be at it for as long as the lease; then it is taken over.
    assert child("", START + 6 * MINUTE) == 0
    assert (tmp_path / "wall").read_text().split() == [alert.fingerprint] * times
    assert child("", START + HOUR) == 0
    assert (tmp_path / "wall").read_text().split() == [alert.fingerprint] * times


def test_what_one_process_sends_no_other_does(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.see("critical")
    desk.tick(0)
    other = Desk(tmp_path)
    other.tick(0)
    assert (len(desk.pager.notices), len(other.pager.notices)) == (1, 0)

    class Busy(Fake):
        def send(self, notice: Notice) -> None:
            super().send(notice)
            other.tick(SECOND)

    desk.see("critical", rule="later")
    desk.delivery.outbox.channels = {**desk.delivery.outbox.channels, "pager": Busy()}
    desk.tick(SECOND)
    assert len(other.pager.notices) == 0


def test_odd_rules_are_refused(tmp_path: Path) -> None:
    for wrong in (
        {"severity": "loud"},
        {"wait": -1},
        {"daily_at": DAY},
        {"escalations": (Escalation(after=2, channels=()), Escalation(after=1, channels=()))},
    ):
        with pytest.raises(InvalidInput):
            Route(**({"severity": "info", "channels": ("x",)} | wrong))
    with pytest.raises(InvalidInput, match="lists of names"):
        DeliveryRules.usual(critical="pager", warning=["chat"], info=["mail"])
    route = Route(severity="info", channels=("x",))
    with pytest.raises(InvalidInput, match="one a severity"):
        DeliveryRules(routes=(route, route))
    with pytest.raises(InvalidInput, match="be of system"):
        DeliveryRules(routes=(route,), same=("rule",))
    alerts = Alerts(tmp_path / "alerts.sqlite")
    with pytest.raises(InvalidInput, match="rules: channel: got 'x'"):
        Delivery(tmp_path / "delivery.sqlite", alerts, {}, DeliveryRules(routes=(route,)))
