"""Channels against real receivers on the loopback: web hooks, PagerDuty's and Slack's formats, mail, Alertmanager."""

import base64
import http.server
import json
import logging
import socketserver
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vitok.errors import InvalidInput, MissingExtra, NotFound, ServiceError
from vitok.monitoring.channels import Alertmanager, AppriseChannel, secret
from vitok.monitoring.outbox import Notice

ALERT = {
    "rule": "absence",
    "severity": "critical",
    "system": "fraud",
    "version": "all",
    "slice": "",
    "reason": "no decisions",
    "playbook": "check the service",
    "first_seen": 60_000_000,
    "raised_at": 60_000_000,
    "cleared_at": None,
}
RAISED = Notice(
    key="0123abcd", kind="raised", severity="critical", title="CRITICAL", body="no decisions", alerts=(ALERT,)
)
CLEARED = Notice(
    key="0123abcd",
    kind="cleared",
    severity="critical",
    title="CLEARED",
    body="over",
    alerts=(ALERT | {"cleared_at": 10**8},),
)
# What apprise imports is its own affair.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SECRET = "s3cr3tt0k3n0123456789"


class Receiver(http.server.ThreadingHTTPServer):
    """Takes what is posted, and answers with the status it is told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.taken: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.garbage = b""
        self.elsewhere = ""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append((self.path, json.loads(content)))
        self.server.headers.append(dict(self.headers))
        if self.server.garbage:
            self.wfile.write(self.server.garbage)
            return
        self.send_response(self.server.status)
        if self.server.elsewhere:
            self.send_header("Location", self.server.elsewhere)
        self.end_headers()
        self.wfile.write(b"ok")

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class Mailbox(socketserver.ThreadingTCPServer):
    """Speaks as much SMTP (RFC 5321) as it takes to be left a mail."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MailHandler)
        self.mails: list[str] = []


class MailHandler(socketserver.StreamRequestHandler):
    server: Mailbox

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline():
            command = line[:4].upper().strip()
            if command == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                content = b""
                while (line := self.rfile.readline()) != b".\r\n":
                    content += line
                self.server.mails.append(content.decode())
            if command == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            self.wfile.write(b"250 ok\r\n")


def serving(server: Any) -> Iterator[Any]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    yield from serving(Receiver())


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    yield from serving(Mailbox())


@pytest.fixture
def apprise() -> Any:
    return pytest.importorskip("apprise", reason="apprise is not installed (the extra alerts)")


def test_a_web_hook_gets_title_text_and_kind(apprise: Any, receiver: Receiver) -> None:
    AppriseChannel(lambda: f"json://{receiver.address}/hook", name="hook").send(RAISED)
    ((path, posted),) = receiver.taken
    assert (path, posted["title"], posted["message"], posted["type"]) == (
        "/hook",
        "CRITICAL",
        "no decisions",
        "failure",
    )


def test_pagerduty_gets_a_key_and_is_told_of_the_end(
    apprise: Any, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apprise.plugins import pagerduty

    # apprise has PagerDuty's two addresses and takes no other.
    monkeypatch.setitem(pagerduty.PAGERDUTY_API_LOOKUP, "us", f"http://{receiver.address}/v2/enqueue")
    channel = AppriseChannel(lambda: f"pagerduty://{SECRET}@apikey/vitok", name="pager")
    receiver.status = 202
    channel.send(RAISED)
    channel.send(CLEARED)
    (_, raised), (_, cleared) = receiver.taken
    assert (raised["event_action"], raised["dedup_key"], raised["routing_key"]) == ("trigger", "0123abcd", SECRET)
    assert raised["payload"]["severity"] == "critical"
    assert "no decisions" in raised["payload"]["summary"]
    assert (cleared["event_action"], cleared["dedup_key"]) == ("resolve", "0123abcd")


def test_slack_gets_an_attachment(apprise: Any, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    from apprise.plugins.slack import NotifySlack

    monkeypatch.setattr(NotifySlack, "webhook_url", f"http://{receiver.address}/services")
    tokens = "T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
    AppriseChannel(lambda: f"slack://{tokens}/#alerts", name="chat").send(RAISED)
    ((path, posted),) = receiver.taken
    assert path == f"/services/{tokens}"
    assert "no decisions" in json.dumps(posted)


def test_a_mail_is_left(apprise: Any, mailbox: Mailbox) -> None:
    port = mailbox.server_address[1]
    address = f"mailto://127.0.0.1:{port}?from=vitok@example.org&to=ann@example.org&mode=insecure"
    AppriseChannel(lambda: address, name="mail").send(RAISED)
    (mail,) = mailbox.mails
    assert "Subject: CRITICAL" in mail
    assert "To: ann@example.org" in mail


def test_failures_name_the_channel_and_no_secret(
    apprise: Any, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.status = 500
    address = f"json://user:{SECRET}@{receiver.address}/{SECRET}?token={SECRET}"
    told = [repr(AppriseChannel(lambda: address, name="hook"))]
    for wrong in (address, f"json://{SECRET}@127.0.0.1:1/", f"nothing://{SECRET}", SECRET):
        with pytest.raises((ServiceError, InvalidInput)) as caught:
            AppriseChannel(lambda wrong=wrong: wrong, name="hook").send(RAISED)  # type: ignore[misc]
        told.append(str(caught.value))
        assert "hook" in str(caught.value)
    assert not any(SECRET in text for text in (*told, caplog.text))


def test_without_apprise_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(MissingExtra, match=r"vitok\[alerts\]"):
        AppriseChannel(lambda: "json://127.0.0.1", name="hook")


def test_alertmanager_gets_labels_start_and_end(receiver: Receiver) -> None:
    channel = Alertmanager(f"http://{receiver.address}/")
    channel.send(RAISED)
    channel.send(CLEARED)
    (path, (raised,)), (_, (cleared,)) = receiver.taken
    assert path == "/api/v2/alerts"
    assert raised == {
        "labels": {"alertname": "absence", "severity": "critical", "system": "fraud", "version": "all"},
        "annotations": {"summary": "no decisions", "playbook": "check the service"},
        "startsAt": "1970-01-01T00:01:00Z",
        # Without an end it would be over after five minutes.
        "endsAt": "1971-01-02T00:01:00Z",
    }
    assert cleared == raised | {"endsAt": "1970-01-01T00:01:40Z"}
    set_back = ALERT | {"cleared_at": 1}
    channel.send(Notice(key="x", kind="cleared", severity="critical", title="x", body="x", alerts=(set_back,)))
    assert receiver.taken[-1][1][0]["endsAt"] == "1970-01-01T00:01:00.000001Z"


def test_an_answer_that_sends_elsewhere_is_no_delivery(receiver: Receiver) -> None:
    for status in (301, 302, 303, 307, 308):
        receiver.status, receiver.elsewhere = status, f"http://{receiver.address}/signin"
        with pytest.raises(ServiceError, match=str(status)):
            Alertmanager(f"http://{receiver.address}").send(RAISED)


@pytest.mark.parametrize("answer", [b"SECRET nonsense\r\n\r\n", b"HTTP/1.1 2", b"HTTP/1.1 abc x\r\n\r\n"])
def test_an_answer_that_is_none_is_a_service_error(receiver: Receiver, answer: bytes) -> None:
    receiver.garbage = answer
    with pytest.raises(ServiceError, match="alertmanager does not answer"):
        Alertmanager(f"http://{receiver.address}").send(RAISED)


def test_a_password_in_the_address_is_sent_and_never_told(receiver: Receiver) -> None:
    Alertmanager(lambda: f"http://ann:{SECRET}%40@{receiver.address}/").send(RAISED)
    assert receiver.headers[-1]["Authorization"] == "Basic " + base64.b64encode(f"ann:{SECRET}@".encode()).decode()
    for wrong in (f"http://ann:{SECRET}@host:{SECRET}/", f"http://[{SECRET}", f"http://a b{SECRET}/"):
        with pytest.raises(ServiceError) as caught:
            Alertmanager(lambda wrong=wrong: wrong, timeout=1).send(RAISED)  # type: ignore[misc]
        told = "".join(traceback.format_exception(caught.value))
        assert "does not answer" in told
        assert SECRET not in told.replace(repr(wrong), "")


def test_an_alertmanager_that_refuses_or_is_down_is_a_service_error(receiver: Receiver) -> None:
    for status in (400, 503, 202):
        receiver.status = status
        with pytest.raises(ServiceError, match=str(status)):
            Alertmanager(f"http://user:{SECRET}@{receiver.address}".replace(f"user:{SECRET}@", "")).send(RAISED)
    with pytest.raises(ServiceError, match="alertmanager does not answer") as caught:
        Alertmanager(f"http://127.0.0.1:1/{SECRET}", timeout=1).send(RAISED)
    assert SECRET not in str(caught.value)
    with pytest.raises(InvalidInput, match="http://"):
        Alertmanager(f"file://{SECRET}").send(RAISED)


def test_secrets_come_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITOK_TEST_PAGER", f" {SECRET}\n")
    (tmp_path / "pager").write_text(f"{SECRET}\n")
    assert secret("env:VITOK_TEST_PAGER") == secret(f"file:{tmp_path}/pager") == SECRET
    (tmp_path / "empty").write_text("\n")
    for wrong, error in (
        ("env:VITOK_TEST_NOWHERE", NotFound),
        (f"file:{tmp_path}/nowhere", NotFound),
        (f"file:{tmp_path}/empty", InvalidInput),
        (f"pagerduty://{SECRET}@key", InvalidInput),
        ("env:", InvalidInput),
    ):
        with pytest.raises(error) as caught:
            secret(wrong)
        assert SECRET not in str(caught.value)
