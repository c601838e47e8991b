"""`vitok alerts` and `vitok incidents`: what a person on call does from the command line."""

import json
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from vitok.clock import HOUR, parse_time
from vitok.console.alert_commands import alert_app
from vitok.console.incident_commands import incident_app
from vitok.errors import ServiceError
from vitok.loop.incidents import Incidents
from vitok.monitoring import Alert, AlertRule, Alerts
from vitok.monitoring.delivery import Delivery, DeliveryRules, Escalation, Route
from vitok.monitoring.outbox import Notice, Retry

NOW = "2026-01-01T00:00:00Z"
AT = parse_time(NOW)
RULE = AlertRule(name="absence", severity="critical", windows=1, playbook="check the service")


def run(app: typer.Typer, *arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(item) for item in arguments])
    # Errors come as one message, never as a traceback.
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def raised(tmp_path: Path) -> Alert:
    alerts = Alerts(tmp_path / "monitoring" / "alerts.sqlite")
    alert = alerts.observe(
        RULE,
        system="fraud",
        version="all",
        window_end=AT,
        firing=True,
        value=0.0,
        bound=1.0,
        reason="no decisions",
        now=AT,
    )
    alerts.close()
    assert alert is not None
    return alert


def test_alerts_are_listed_with_their_step(tmp_path: Path, raised: Alert) -> None:
    told = run(alert_app, "list", "--home", tmp_path).stdout
    assert told == "1 2026-01-01T00:00:00Z critical absence of all (fraud): no decisions. Next: check the service\n"
    assert json.loads(run(alert_app, "list", "--json", "--all", "--home", tmp_path).stdout)[0]["rule"] == "absence"
    empty = run(alert_app, "list", "--home", tmp_path / "nowhere")
    assert (empty.exit_code, "file of alerts" in empty.stderr) == (2, True)


def test_rules_are_written_for_prometheus(tmp_path: Path) -> None:
    (group,) = yaml.safe_load(run(alert_app, "rules", "--prometheus", "--interval", "30s").stdout)["groups"]
    assert group["interval"] == "30s"
    exported = {rule["alert"] for rule in group["rules"]}
    assert {"absence", "fallback_1h", "data_drift_7d", "label_source", "watch_behind", "notices_dead"} <= exported
    own = tmp_path / "rules.yaml"
    own.write_text("- {name: slow, severity: info, playbook: look, metric: m, threshold: 2, for: 15m}\n")
    assert "info     slow: m > 2" in run(alert_app, "rules", "--file", own).stdout
    (group,) = yaml.safe_load(run(alert_app, "rules", "--file", own, "--prometheus").stdout)["groups"]
    assert group["rules"][0]["for"] == "15m"
    for interval, more in (("10m", ["--prometheus"]), ("10q", ["--prometheus"]), ("0s", ["--prometheus"]), ("10m", [])):
        wrong = run(alert_app, "rules", *more, "--interval", interval)
        assert (wrong.exit_code, f"--interval: got '{interval}'" in wrong.stderr) == (2, True), wrong.stderr


def test_a_silence_of_a_rule_that_is_not_known_says_so(tmp_path: Path, raised: Alert) -> None:
    given = ("--for", "2h", "--by", "ann", "--reason", "planned", "--home", tmp_path, "--now", NOW)
    made = run(alert_app, "silence", "--rule", "abscence", *given)
    assert (made.exit_code, "no rule 'abscence' is known here" in made.stderr) == (0, True)
    assert "absence" in made.stderr
    assert made.stdout.startswith("1: rule=abscence")
    assert run(alert_app, "silence", "--rule", "absence", *given).stderr == ""


def test_whoever_takes_an_alert_ends_its_escalation(tmp_path: Path, raised: Alert) -> None:
    class Wall:
        def __init__(self) -> None:
            self.titles: list[str] = []

        def send(self, notice: Notice) -> None:
            self.titles.append(notice.title)

    at = ("--home", tmp_path, "--now", NOW)
    early = run(alert_app, "acknowledge", 1, "--by", "ann", *at)
    assert (early.exit_code, "file of messages" in early.stderr) == (2, True)
    wall = Wall()
    alerts = Alerts(tmp_path / "monitoring" / "alerts.sqlite")
    steps = tuple(Escalation(after=after, channels=("wall",)) for after in (HOUR, 3 * HOUR))
    rules = DeliveryRules(routes=(Route(severity="critical", channels=("wall",), escalations=steps),))
    delivery = Delivery(tmp_path / "monitoring" / "delivery.sqlite", alerts, {"wall": wall}, rules)
    delivery.tick(AT)
    delivery.tick(AT + 2 * HOUR)
    assert len(wall.titles) == 2
    for arguments, told in (((9, "--by", "ann"), "there is: 1"), ((1, "--by", " "), "--by")):
        wrong = run(alert_app, "acknowledge", *arguments, *at)
        assert (wrong.exit_code, told in wrong.stderr) == (2, True)
    assert run(alert_app, "acknowledge", 1, "--by", "ann", *at).stdout == "alert 1 is acknowledged by ann\n"
    assert run(alert_app, "acknowledge", 1, "--by", "bob", *at).exit_code == 2
    delivery.tick(AT + 4 * HOUR)
    assert len(wall.titles) == 2
    delivery.close()
    alerts.close()


@pytest.mark.parametrize(
    "content",
    [
        *("", "{}", "[]", "- 3", "- {name: x}", ": :", "- {for: 3q}"),
        "- {name: x, severity: info, playbook: y, colour: red}",
        "- {name: x, severity: loud, playbook: y}",
        "- {name: x, severity: info, playbook: y, windows: many}",
    ],
)
def test_odd_files_of_rules_are_refused_in_words(tmp_path: Path, content: str) -> None:
    own = tmp_path / "rules.yaml"
    own.write_text(content)
    refused = run(alert_app, "rules", "--file", own)
    assert (refused.exit_code, refused.stderr[:7]) == (2, "vitok: ")


def test_a_silence_from_the_command_line_holds_an_alert(tmp_path: Path, raised: Alert) -> None:
    at = ("--home", tmp_path, "--now", NOW)
    made = run(alert_app, "silence", "--rule", "absence", "--for", "2h", "--by", "ann", "--reason", "planned", *at)
    assert made.stdout.startswith(
        "1: rule=absence from 2026-01-01T00:00:00Z until 2026-01-01T02:00:00Z by ann: planned"
    )

    class Wall:
        def __init__(self) -> None:
            self.titles: list[str] = []

        def send(self, notice: Notice) -> None:
            self.titles.append(notice.title)

    wall = Wall()
    alerts = Alerts(tmp_path / "monitoring" / "alerts.sqlite")
    rules = DeliveryRules(routes=(Route(severity="critical", channels=("wall",)),))
    delivery = Delivery(tmp_path / "monitoring" / "delivery.sqlite", alerts, {"wall": wall}, rules)
    delivery.tick(AT + HOUR)
    assert wall.titles == []
    assert run(alert_app, "silences", *at).stdout == made.stdout
    assert "ended by bob" in run(alert_app, "unsilence", 1, "--by", "bob", *at).stdout
    delivery.tick(AT + HOUR)
    assert wall.titles == ["CRITICAL absence of fraud all: no decisions"]
    assert run(alert_app, "silences", *at).stdout == "nothing is silenced\n"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "--for, --until"),
        (("--for", "2h", "--until", NOW), "--for, --until"),
        (("--for", "2q"), "--for"),
        (("--until", "soon"), "--until"),
        (("--until", NOW), "--for, --until"),
        (("--for", "2h"), "--rule"),
    ],
)
def test_odd_silences_name_the_option(tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    matched = () if told == "--rule" else ("--rule", "x")
    given = ("--by", "ann", "--reason", "y", "--home", tmp_path, "--now", NOW)
    refused = run(alert_app, "silence", *matched, *options, *given)
    assert (refused.exit_code, told in refused.stderr) == (2, True), refused.stderr


def test_what_was_given_up_is_shown_and_tried_again(tmp_path: Path, raised: Alert) -> None:
    class Broken:
        def send(self, notice: Notice) -> None:
            raise ServiceError("out of order")

    alerts = Alerts(tmp_path / "monitoring" / "alerts.sqlite")
    rules = DeliveryRules(routes=(Route(severity="critical", channels=("pager",)),), retry=Retry(attempts=1))
    missing = run(alert_app, "undelivered", "--home", tmp_path)
    assert missing.exit_code == 2
    Delivery(tmp_path / "monitoring" / "delivery.sqlite", alerts, {"pager": Broken()}, rules).tick(AT)
    assert "1 to pager: dead" in run(alert_app, "undelivered", "--home", tmp_path).stdout
    assert "waiting" in run(alert_app, "retry", 1, "--home", tmp_path, "--now", NOW).stdout
    assert run(alert_app, "retry", 1, "--home", tmp_path).exit_code == 2


def test_the_life_of_an_incident(tmp_path: Path, raised: Alert) -> None:
    at = ("--home", tmp_path, "--now", NOW)
    assert run(incident_app, "list", "--home", tmp_path).stdout == "no incident is open\n"
    incidents = Incidents(tmp_path)
    incidents.report(raised, now=AT)
    assert run(incident_app, "list", "--home", tmp_path).stdout.startswith(
        "incident-0001 all absence: no decisions: open"
    )
    run(incident_app, "note", "incident-0001", "the network was down", "--by", "ann", *at)
    empty = run(incident_app, "note", "incident-0001", " ", "--by", "ann", *at)
    assert (empty.exit_code, "TEXT: got ' '" in empty.stderr) == (2, True)
    shown = run(incident_app, "show", "incident-0001", "--home", tmp_path).stdout
    assert "ann: the network was down" in shown
    assert "## Timeline" in run(incident_app, "show", "incident-0001", "--timeline", "--home", tmp_path).stdout
    other = Alert(**{**raised.__dict__, "id": 2, "system": "shop"})
    incidents.report(other, now=AT)
    merged = run(incident_app, "merge", "incident-0002", "--into", "incident-0001", "--by", "ann", *at)
    assert merged.stdout.startswith("incident-0001")
    resolved = run(incident_app, "resolve", "incident-0001", "network mended", "--by", "ann", *at).stdout
    assert "network mended" in resolved
    assert "next time: " in resolved
    assert json.loads(run(incident_app, "list", "--all", "--json", "--home", tmp_path).stdout)[0]["closed"] == AT
    missing = run(incident_app, "show", "incident-0009", "--home", tmp_path)
    assert (missing.exit_code, "incident-0009" in missing.stderr) == (2, True)


def test_the_loop_is_told_only_to_propose(tmp_path: Path) -> None:
    at = ("--home", tmp_path, "--now", NOW)
    assert (
        run(incident_app, "propose-only", "--home", tmp_path).stdout == "the loop acts by itself, within its bounds\n"
    )
    told = run(incident_app, "propose-only", "rollback", "--by", "ann", "--reason", "audit", *at).stdout
    assert told == "rollback: only proposed since 2026-01-01T00:00:00Z, by ann: audit\n"
    run(incident_app, "propose-only", "rollback", "--off", "--by", "ann", "--reason", "over", *at)
    assert len(run(incident_app, "propose-only", "--home", tmp_path).stdout.splitlines()) == 2
    for wrong in (("dance", "--by", "ann", "--reason", "x"), ("all", "--by", "ann"), ("all", "--off")):
        assert run(incident_app, "propose-only", *wrong, *at).exit_code == 2


def test_what_others_wrote_does_not_reach_the_terminal_as_codes(tmp_path: Path) -> None:
    home = tmp_path / "fraud"
    alerts = Alerts(home / "monitoring" / "alerts.sqlite")
    rule = AlertRule(name="quality", severity="critical", playbook="look", windows=1)
    reason = "country=\x1b[2J\x1b]0;x\x07\nno alert is open \u202e"
    raised = alerts.observe(
        rule, system="fraud", version="all", window_end=1, firing=True, value=1, bound=0, reason=reason, now=1
    )
    alerts.close()
    assert raised is not None
    Incidents(home).report(raised, now=1)
    for app, arguments in ((alert_app, ["list"]), (incident_app, ["list"]), (incident_app, ["show", "incident-0001"])):
        shown = CliRunner().invoke(app, [*arguments, "--home", str(home)])
        assert shown.exit_code == 0
        assert not set("\x1b\x07\u202e") & set(shown.output)
        assert "\\x1b[2J" in shown.output
        assert "\nno alert" not in shown.output
