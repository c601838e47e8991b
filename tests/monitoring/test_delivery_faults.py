"""Delivery where things go wrong: clocks, slow receivers, another file of alerts, order, an older file, growth."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from vitok.clock import DAY, HOUR, MINUTE, SECOND
from vitok.errors import InvalidInput, ServiceError
from vitok.monitoring import AlertRule, Alerts
from vitok.monitoring.delivery import Delivery, DeliveryRules, Route
from vitok.monitoring.outbox import Notice

START = 100 * DAY
USUAL = DeliveryRules.usual(critical=["pager"], warning=["chat"], info=["mail"])


class Fake:
    def __init__(self) -> None:
        self.told: list[Notice] = []
        self.asked = 0
        self.error: Exception | None = None

    def send(self, notice: Notice) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error
        self.told.append(notice)

    @property
    def kinds(self) -> list[str]:
        return [notice.kind for notice in self.told]


class Desk:
    def __init__(self, folder: Path, **rules: Any) -> None:
        self.folder = folder
        self.channels = {name: Fake() for name in ("pager", "chat", "mail")}
        self.pager, self.chat, self.mail = self.channels.values()
        self.rules = DeliveryRules(**({"routes": USUAL.routes} | rules))
        self.open()

    def open(self) -> None:
        self.alerts = Alerts(self.folder / "alerts.sqlite")
        self.delivery = Delivery(self.folder / "delivery.sqlite", self.alerts, self.channels, self.rules)

    def see(self, rule: str, at: int, *, severity: Any = "critical", firing: bool = True, system: str = "fraud") -> int:
        one = AlertRule(name=rule, severity=severity, playbook="look", windows=1, clear_after=1, every=1)
        now = START + at
        changed = self.alerts.observe(
            one, system=system, version="all", window_end=now, firing=firing, value=1, bound=0, reason="x", now=now
        )
        assert changed is not None
        return changed.id

    def tick(self, at: int) -> str:
        return str(self.delivery.tick(START + at))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_another_file_of_alerts_is_told_from_its_beginning(desk: Desk) -> None:
    for number in range(3):
        desk.see(f"rule{number}", 0)
    desk.tick(0)
    desk.alerts.close()
    for path in desk.folder.glob("alerts.sqlite*"):
        path.unlink()
    desk.open()
    desk.see("rule0", MINUTE)
    desk.tick(MINUTE)
    assert [notice.alerts[0]["rule"] for notice in desk.pager.told] == ["rule0", "rule1", "rule2", "rule0"]
    # And also where it has as many alerts by the next look.
    for number in range(1, 9):
        desk.see(f"other{number}", 2 * MINUTE)
    desk.tick(2 * MINUTE)
    desk.tick(3 * MINUTE)
    assert [notice.alerts[0]["rule"] for notice in desk.pager.told][4:] == [f"other{number}" for number in range(1, 9)]


def test_an_end_does_not_overtake_its_beginning(desk: Desk) -> None:
    desk.pager.error = ServiceError("out")
    desk.see("a", 0)
    desk.tick(0)
    desk.pager.error = None
    desk.see("a", SECOND, firing=False)
    desk.tick(SECOND)
    assert desk.pager.kinds == []
    desk.tick(MINUTE)
    assert desk.pager.kinds == ["raised", "cleared"]


def test_the_last_of_those_that_were_told_as_one_ends_it(desk: Desk) -> None:
    desk.see("a", 0, severity="warning")
    desk.see("b", 0, severity="warning")
    desk.tick(0)
    desk.tick(MINUTE)
    (told,) = desk.chat.told
    desk.see("a", 2 * MINUTE, severity="warning", firing=False)
    desk.tick(2 * MINUTE)
    desk.see("b", 3 * MINUTE, severity="warning", firing=False)
    desk.tick(3 * MINUTE)
    assert [notice.key == told.key for notice in desk.chat.told] == [True, False, True]


def test_a_channel_that_hangs_holds_others_up_once_a_tick_and_critical_ones_go_first(tmp_path: Path) -> None:
    routes = (Route(severity="warning", channels=("chat",)), Route(severity="critical", channels=("pager",)))
    desk = Desk(tmp_path, routes=routes)
    desk.chat.error = ServiceError("timed out")
    for number in range(5):
        desk.see(f"w{number}", 0, severity="warning", system=f"s{number}")
    desk.see("c", 0)
    order: list[str] = []
    desk.pager.send = lambda notice: order.append("pager")  # type: ignore[method-assign]
    failing = desk.chat.send
    desk.chat.send = lambda notice: (order.append("chat"), failing(notice))[1]  # type: ignore[method-assign,func-returns-value]
    desk.tick(0)
    assert order == ["pager", "chat"]


def test_an_error_of_the_network_is_a_failure_without_its_text(desk: Desk) -> None:
    desk.pager.error = ConnectionResetError("https://token@pager cut it")
    desk.see("a", 0)
    assert desk.tick(0) == "0 sent, 1 to be tried again, 0 given up"
    (message,) = desk.delivery.outbox.messages()
    assert message.error == "pager does not answer: ConnectionResetError"


def test_a_clock_that_was_ahead_holds_nothing_back(desk: Desk) -> None:
    year = 365 * DAY
    desk.tick(year)
    desk.see("a", year)
    desk.pager.error = ServiceError("out")
    desk.tick(year)
    desk.pager.error = None
    # The clock is set right.
    desk.tick(0)
    assert desk.pager.kinds == ["raised", "escalated"]
    desk.alerts.clear(1, now=START, reason="mended")
    desk.tick(MINUTE)
    desk.see("a", year + DAY)
    desk.tick(2 * MINUTE)
    assert desk.pager.kinds == ["raised", "escalated", "cleared", "raised"]
    desk.tick(8 * HOUR)
    desk.tick(32 * HOUR)
    assert desk.mail.kinds == ["summary", "summary"]


def test_who_is_told_nobody_keeps_nobody_back(desk: Desk) -> None:
    desk.delivery.silences.add({"rule": "a"}, until=START + DAY, who="ann", why="known", now=START)
    desk.see("a", 0)
    desk.see("b", 0, severity="warning")
    desk.see("c", 0, system="")
    desk.see("d", 0, severity="warning", system="")
    desk.tick(0)
    desk.tick(MINUTE)
    assert [notice.alerts[0]["rule"] for notice in desk.pager.told] == ["c"]
    assert [notice.alerts[0]["rule"] for notice in desk.chat.told] == ["b", "d"]


@pytest.mark.parametrize("wrong", [{"critical": ("critical",)}, {"critical": ("warning",)}, {"warning": ("loud",)}])
def test_what_would_keep_the_stronger_back_is_refused(wrong: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(InvalidInput, match="inhibited_by"):
        DeliveryRules(routes=USUAL.routes, inhibited_by=wrong)
    with pytest.raises(InvalidInput, match="keep"):
        DeliveryRules(routes=USUAL.routes, keep=HOUR)


def test_two_daily_summaries_tell_each_their_own(tmp_path: Path) -> None:
    routes = (
        Route(severity="warning", channels=("chat",), daily_at=7 * HOUR),
        Route(severity="info", channels=("mail",), daily_at=7 * HOUR),
    )
    desk = Desk(tmp_path, routes=routes)
    desk.tick(0)
    desk.see("w", HOUR, severity="warning")
    desk.see("i", HOUR, severity="info")
    desk.tick(8 * HOUR)
    assert [[alert["rule"] for alert in fake.told[0].alerts] for fake in (desk.chat, desk.mail)] == [["w"], ["i"]]


def test_what_is_long_over_is_forgotten(desk: Desk) -> None:
    desk.tick(0)
    for number in range(5):
        desk.see("a", number * DAY)
        desk.tick(number * DAY)
        desk.see("a", number * DAY + HOUR, firing=False)
        desk.tick(number * DAY + HOUR)
    desk.tick(200 * DAY)
    database = sqlite3.connect(desk.folder / "delivery.sqlite")
    counts = [database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("message", "followed")]
    database.close()
    assert counts == [1, 1]
    desk.tick(201 * DAY)
    assert desk.pager.kinds == ["raised", "cleared"] * 5


def test_one_message_is_no_longer_than_receivers_take(desk: Desk) -> None:
    for number in range(50):
        desk.see(f"w{number:02}" + "x" * 100, 0, severity="warning")
    desk.tick(0)
    desk.tick(MINUTE)
    (notice,) = desk.chat.told
    assert len(notice.title) == 300
    assert notice.body.endswith("and 30 more")
    assert len(notice.alerts) == 50


def test_a_file_of_the_first_layout_goes_on(tmp_path: Path) -> None:
    alerts = Alerts(tmp_path / "alerts.sqlite")
    rule = AlertRule(name="a", severity="critical", playbook="look", windows=1, clear_after=1, every=1)
    known: dict[str, Any] = {"system": "fraud", "version": "all", "value": 1, "bound": 0, "reason": "x"}
    raised = alerts.observe(rule, window_end=START, firing=True, now=START, **known)
    assert raised is not None
    alerts.close()
    notice = {"key": raised.fingerprint, "kind": "raised", "severity": "critical", "title": "t", "body": "b"}
    old = sqlite3.connect(tmp_path / "delivery.sqlite")
    old.executescript(
        """
        CREATE TABLE message (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, channel TEXT NOT NULL,
            notice TEXT NOT NULL, created_at INTEGER NOT NULL, due_at INTEGER NOT NULL,
            claimed_until INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0,
            state TEXT NOT NULL DEFAULT 'waiting', error TEXT NOT NULL DEFAULT '', ended_at INTEGER) STRICT;
        CREATE INDEX message_due ON message (state, due_at);
        CREATE TABLE silence (id INTEGER PRIMARY KEY, matchers TEXT NOT NULL, starts_at INTEGER NOT NULL,
            ends_at INTEGER NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL, created_at INTEGER NOT NULL,
            ended_by TEXT NOT NULL DEFAULT '') STRICT;
        CREATE TABLE followed (alert INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL, noticed_at INTEGER NOT NULL,
            told_at INTEGER, held TEXT NOT NULL DEFAULT '', ended INTEGER NOT NULL DEFAULT 0,
            escalated INTEGER NOT NULL DEFAULT 0, acknowledged_at INTEGER, acknowledged_by TEXT NOT NULL DEFAULT '',
            summed INTEGER NOT NULL DEFAULT 0) STRICT;
        CREATE TABLE summary (severity TEXT NOT NULL, day INTEGER NOT NULL, PRIMARY KEY (severity, day)) STRICT;
        PRAGMA user_version = 1;
        """
    )
    old.execute(
        "INSERT INTO message (key, channel, notice, created_at, due_at) VALUES ('pager/raised/1', 'pager', ?, ?, ?)",
        (json.dumps(notice | {"alerts": []}), START, START),
    )
    old.execute(
        "INSERT INTO followed (alert, fingerprint, noticed_at, told_at) VALUES (1, ?, ?, ?)",
        (raised.fingerprint, START, START),
    )
    old.commit()
    old.close()
    desk = Desk(tmp_path)
    desk.tick(MINUTE)
    desk.tick(2 * MINUTE)
    assert desk.pager.kinds == ["raised"]
    desk.see("a", 3 * MINUTE, firing=False)
    desk.tick(3 * MINUTE)
    assert [(one.kind, one.key) for one in desk.pager.told[1:]] == [("cleared", raised.fingerprint)]
