"""Ways to people: everything that apprise reaches (PagerDuty, Slack, mail, plain webhooks), and Alertmanager.

An address of apprise holds tokens and passwords. It is read when it is needed, from the environment or a file, and
appears in no error, no log and no stored message.
"""

import base64
import http.client
import json
import logging
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from vitok.clock import DAY, isoformat
from vitok.errors import InvalidInput, MissingExtra, NotFound, ServiceError
from vitok.monitoring.outbox import Notice

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_KINDS = {"critical": "failure", "warning": "warning", "info": "info"}
_ANSWER = 200
# Alertmanager ends by itself, after five minutes, what says no end and is not sent again.
_OPEN_END = 366 * DAY


def secret(reference: str) -> str:
    """Reads a secret from where it is kept.

    Args:
        reference: `"env:NAME"` for a variable of the environment, `"file:PATH"` for the content of a file, without
            the white space around it.

    Raises:
        NotFound: If there is no such variable or file.
        InvalidInput: If it is empty, or the reference is none of these. Neither names the secret.

    Example:
        >>> secret("plain text")
        Traceback (most recent call last):
        vitok.errors.InvalidInput: secret: got '...', must be env:NAME or file:PATH. Keep it out of code
    """
    kind, _, name = reference.partition(":")
    if kind == "env" and name:
        value = os.environ.get(name)
        if value is None:
            raise NotFound("variable of the environment", name)
    elif kind == "file" and name:
        try:
            value = Path(name).read_text(encoding="utf-8")
        except OSError:
            raise NotFound("file of a secret", name) from None
    else:
        raise InvalidInput("secret", "...", "be env:NAME or file:PATH", "Keep it out of code")
    if not value.strip():
        raise InvalidInput("secret", reference, "not be empty there")
    return value.strip()


class AppriseChannel:
    """Sends through an address of apprise, such as `pagerduty://…`, `slack://…`, `mailtos://…` or `json://…`.

    An address of PagerDuty gets the notice's key as its deduplication key, so that a message sent twice is one
    incident there, and one that says "cleared" resolves it.

    Args:
        address: Gives the address each time that it is needed, such as `lambda: secret("env:VITOK_PAGER")`.
        name: How the channel is called in errors, since its address must not be.

    Raises:
        MissingExtra: If apprise is not installed.
    """

    def __init__(self, address: Callable[[], str], *, name: str) -> None:
        self._address = address
        self.name = name
        _apprise()

    def __repr__(self) -> str:
        return f"AppriseChannel(name={self.name!r})"

    def send(self, notice: Notice) -> None:
        """Sends a notice.

        Raises:
            InvalidInput: If the address is none that apprise knows.
            ServiceError: If the receiver did not take it.
        """
        apprise = _apprise()
        address = self._address()
        if address.partition(":")[0].lower() == "pagerduty":
            address += ("&" if "?" in address else "?") + f"action=map&dedup={notice.key}"
        sender = apprise.Apprise()
        if not sender.add(address):
            scheme, mark, _ = address.partition("://")
            shown = f"{scheme}://..." if mark and _SCHEME.fullmatch(scheme) else "..."
            raise InvalidInput(f"address of {self.name}", shown, "be one that apprise knows")
        kind = "success" if notice.kind == "cleared" else _KINDS[notice.severity]
        if not sender.notify(title=notice.title, body=notice.body, notify_type=apprise.NotifyType(kind)):
            raise ServiceError(f"{self.name} did not take the message; whether it answers is shown by its own status")


_loading = threading.Lock()


def _apprise() -> Any:
    with _loading:
        try:
            import apprise
        except ModuleNotFoundError:
            raise MissingExtra("alerts", "sending alerts through apprise") from None
        # Their lines quote addresses, which hold tokens, and what receivers answer.
        logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
        logging.getLogger("urllib3").setLevel(logging.ERROR)
    return cast("Any", apprise)


class Alertmanager:
    """Posts alerts to Alertmanager's API, version 2, which then groups, silences and routes them itself.

    Args:
        address: Such as `"http://alertmanager:9093"`, or what gives it where it holds a password, such as
            `https://name:password@host`, which is sent as basic authentication.
        timeout: Seconds to wait for its answer.
        name: How it is called in errors.
    """

    def __init__(self, address: str | Callable[[], str], *, timeout: float = 10.0, name: str = "alertmanager") -> None:
        self._address = address if callable(address) else lambda: address
        self._timeout = timeout
        self.name = name

    def __repr__(self) -> str:
        return f"Alertmanager(name={self.name!r})"

    def send(self, notice: Notice) -> None:
        """Posts the alerts of a notice; a cleared one has its end, an open one an end a year away.

        An answer that sends elsewhere is a refusal: whoever follows it asks there instead of posting.

        Raises:
            InvalidInput: If the address is not one of http or https.
            ServiceError: If it does not answer, or refuses them.
        """
        address = self._address()
        if not address.startswith(("http://", "https://")):
            raise InvalidInput(f"address of {self.name}", "...", "begin with http:// or https://")
        content = json.dumps([_posted(alert) for alert in notice.alerts]).encode()
        try:
            address, headers = _authorised(address)
            request = urllib.request.Request(  # noqa: S310
                f"{address.rstrip('/')}/api/v2/alerts",
                data=content,
                headers={"Content-Type": "application/json"} | headers,
            )
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self._timeout) as answer:
                status = answer.status
        except urllib.error.HTTPError as error:
            error.close()
            raise ServiceError(f"{self.name} refused the alerts with status {error.code}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ServiceError(f"{self.name} does not answer: {type(error).__name__}") from None
        if status != _ANSWER:
            raise ServiceError(f"{self.name} answered with status {status}, not {_ANSWER}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follows nothing."""


def _authorised(address: str) -> tuple[str, dict[str, str]]:
    """Takes name and password out of an address, into a header."""
    parts = urllib.parse.urlsplit(address)
    given, mark, host = parts.netloc.rpartition("@")
    if not mark:
        return address, {}
    token = base64.b64encode(urllib.parse.unquote(given).encode()).decode()
    return urllib.parse.urlunsplit(parts._replace(netloc=host)), {"Authorization": f"Basic {token}"}


def _posted(alert: Any) -> dict[str, Any]:
    labels = {"alertname": alert["rule"]} | {name: alert[name] for name in ("severity", "system", "version", "slice")}
    posted = {
        "labels": {name: value for name, value in labels.items() if value},
        "annotations": {"summary": alert["reason"], "playbook": alert["playbook"]},
        "startsAt": isoformat(alert["first_seen"]),
    }
    end = alert["raised_at"] + _OPEN_END if alert["cleared_at"] is None else alert["cleared_at"]
    # An end before the beginning, as after a clock was set back, is refused.
    return posted | {"endsAt": isoformat(max(end, alert["first_seen"] + 1))}
