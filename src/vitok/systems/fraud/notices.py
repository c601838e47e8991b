"""Whom the fraud system tells of its alerts, and what it publishes: addresses, else a file in the home; gauges."""

import json
from collections.abc import Sequence
from pathlib import Path

from vitok.errors import InvalidInput, StoreError
from vitok.monitoring.channels import Alertmanager, AppriseChannel, secret
from vitok.monitoring.delivery import DeliveryRules
from vitok.monitoring.outbox import Channel, Notice

FILE = "file"
GAUGES = (
    "vitok_alert_windows",
    "vitok_alerts_open",
    "vitok_watch_age_seconds",
    "vitok_notices",
    "vitok_incidents_open",
)
"""What the operator of a live service publishes; the usual rules are about these."""


class NoticeFile:
    """Adds each notice to a file, a line of JSON each: nothing leaves the machine.

    Args:
        path: The file; made where it does not exist.

    Example:
        >>> import tempfile
        >>> notice = Notice(key="a", kind="raised", severity="critical", title="quality of fraud", body="...")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = NoticeFile(Path(folder) / "notices.jsonl")
        ...     file.send(notice)
        ...     json.loads(file.path.read_text())["title"]
        'quality of fraud'
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def send(self, notice: Notice) -> None:
        """Adds a notice.

        Raises:
            StoreError: If the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(notice.to_dict()) + "\n")
        except OSError as error:
            raise StoreError(f"{self.path} cannot be written: {error}") from error


def channels(
    home: Path, *, critical: Sequence[str] = (), warning: Sequence[str] = (), info: Sequence[str] = ()
) -> tuple[dict[str, Channel], DeliveryRules]:
    """Makes the ways to people, and says who is told what; what is given none is kept in `monitoring/notices.jsonl`.

    Args:
        home: The service's home folder.
        critical: Where critical alerts go at once: `env:NAME` or `file:PATH` that hold an address of apprise, or the
            `http://` address of an Alertmanager. Warnings and the daily summary likewise.
        warning: Where warnings go.
        info: Where the daily summary goes.

    Raises:
        InvalidInput: If one is neither.
        NotFound: If a variable or a file is missing.
        MissingExtra: If apprise is not installed and needed.
    """
    made: dict[str, Channel] = {}

    def named(severity: str, given: Sequence[str]) -> list[str]:
        names = []
        for number, reference in enumerate(given, start=1):
            name = f"{severity}-{number}"
            if reference.startswith(("http://", "https://")):
                made[name] = Alertmanager(reference, name=name)
            elif reference.startswith(("env:", "file:")):
                secret(reference)
                made[name] = AppriseChannel(lambda reference=reference: secret(reference), name=name)  # type: ignore[misc]
            else:
                rule = "be env:NAME or file:PATH that hold an address, or an http:// address of an Alertmanager"
                raise InvalidInput(severity, "...", rule, "Addresses hold tokens; keep them out of commands")
            names.append(name)
        if not names:
            made[FILE] = NoticeFile(home / "monitoring" / "notices.jsonl")
            names = [FILE]
        return names

    rules = DeliveryRules.usual(
        critical=named("critical", critical), warning=named("warning", warning), info=named("info", info)
    )
    return made, rules
