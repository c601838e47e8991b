"""How alerts are worded for people: the notice of one alert or of several, and the daily summary."""

import hashlib
from collections.abc import Sequence
from typing import Any

from vitok.clock import isoformat
from vitok.monitoring.alerts import Alert
from vitok.monitoring.outbox import Kind, Notice
from vitok.monitoring.rules import SEVERITIES

# Receivers refuse messages that are too long; what is left out is in the list of alerts.
_MOST_DESCRIBED, _LONGEST_TITLE, _LONGEST_REASON = 20, 300, 600


def notice_of(kind: Kind, alerts: Sequence[Alert], *, since: int = 0, level: int = 0, key: str = "") -> Notice:
    """Words what is told of alerts; the most severe of them speaks for all.

    Args:
        kind: What happened.
        alerts: One or more.
        since: When they were first told, in microseconds, for an escalation.
        level: Which escalation it is, from 1.
        key: Key of the notice at the receiver, for one alert; by default its fingerprint.
    """
    first = min(alerts, key=lambda alert: (SEVERITIES.index(alert.severity), alert.id))
    about = f"{first.rule} of {first.system} {first.version}{f', {first.slice}' if first.slice else ''}"
    if len(alerts) > 1:
        title = f"{len(alerts)} alerts of {first.system}: {', '.join(sorted({alert.rule for alert in alerts}))}"
    elif kind == "cleared":
        title = f"CLEARED {about}: {first.cleared_reason}"
    else:
        title = f"{first.severity.upper()} {about}: {first.reason}"
    if kind == "escalated":
        title = f"NOT ACKNOWLEDGED since {isoformat(since)} (level {level}): {title}"
    key = key or first.fingerprint
    if len(alerts) > 1:
        key = hashlib.sha256(",".join(alert.fingerprint for alert in alerts).encode()).hexdigest()[:16]
    return Notice(
        key=key,
        kind=kind,
        severity=first.severity,
        title=_cut(" ".join(title.split()), _LONGEST_TITLE),
        body="\n\n".join(_all_described(alerts)),
        alerts=tuple(_kept(alert) for alert in alerts),
    )


def _all_described(alerts: Sequence[Alert]) -> list[str]:
    found = [_described(alert) for alert in alerts[:_MOST_DESCRIBED]]
    return [*found, f"and {len(alerts) - len(found)} more"] if len(alerts) > len(found) else found


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _described(alert: Alert) -> str:
    lines = [
        f"{alert.severity} {alert.rule}: {_cut(alert.reason, _LONGEST_REASON)}",
        f"system {alert.system}, version {alert.version}, slice {alert.slice or 'all'}",
        f"size {alert.value:.4g} against {alert.bound:.4g}, since {isoformat(alert.first_seen)}",
        f"alert {alert.id}, raised {isoformat(alert.raised_at)}",
    ]
    if alert.cleared_at is None:
        lines.append(f"next: {alert.playbook}")
    else:
        lines.append(f"cleared {isoformat(alert.cleared_at)}: {alert.cleared_reason}")
    return "\n".join(lines)


def _kept(alert: Alert) -> dict[str, Any]:
    return {**alert.to_dict(), "fingerprint": alert.fingerprint}


def summary_of(new: Sequence[Alert], still: Sequence[Alert], severity: str, at: int) -> Notice:
    """Words a daily summary.

    Args:
        new: Alerts that no summary has told yet.
        still: Older ones that are open.
        severity: Of which severity it is the summary.
        at: Its time, in microseconds.
    """
    ended = [alert for alert in new if alert.state == "cleared"]
    head = f"{len(new)} new alerts, {len(ended)} of them cleared; {len(still)} older ones still open"
    parts = [head, *_all_described(new)]
    if still:
        shown = [_cut(str(alert), _LONGEST_REASON) for alert in still[:_MOST_DESCRIBED]]
        shown += [f"and {len(still) - len(shown)} more"] if len(still) > len(shown) else []
        parts.append("\n".join(["Still open:", *shown]))
    return Notice(
        key=f"summary-{isoformat(at)[:10]}",
        kind="summary",
        severity=severity,
        title=f"Alerts until {isoformat(at)}: {head}",
        body="\n\n".join(parts),
        alerts=tuple(_kept(alert) for alert in new),
    )
