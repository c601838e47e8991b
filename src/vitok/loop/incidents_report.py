"""An incident as a report that a person reads: what, since when, the evidence, what was ruled out, what was done."""

from vitok.clock import isoformat
from vitok.loop.incidents import events, standing
from vitok.loop.records import Record
from vitok.loop.triage import Change, line_of


def report(record: Record) -> str:
    """Writes an incident as the report of an investigation, in Markdown.

    What, since when, how large, where; the evidence with its numbers and what was ruled out; what was changed before;
    what was done and how it is taken back; what is proposed; how it ended and what keeps it from coming again.

    Args:
        record: The incident.
    """
    alerts = [entry.data["alert"] for entry in events(record, "alert")]
    found = [entry.data for entry in events(record, "triage")]
    state = f"resolved {isoformat(record.closed)}: {record.outcome}" if record.closed is not None else "open"
    lines = [f"# {record.record_id}: {_line(record.title)}", "", f"State: {state}", "", "## What"]
    for alert in alerts:
        where = f", slice {alert['slice']}" if alert["slice"] else ""
        lines.append(
            f"- {alert['severity']} **{alert['rule']}** of {alert['system']} {alert['version']}{where}:"
            f" {_line(alert['reason'])}; size {_told(alert['value'])} against {_told(alert['bound'])},"
            f" since {isoformat(alert['first_seen'])}"
        )
    for one in found:
        lines += ["", f"## Cause, as of alert {one['alert']}", "", f"{one['cause']}: {_line(one['text'])}", ""]
        lines += ["| question | finding | answer | value | n |", "|---|---|---|---|---|"]
        for fact in (*one["integrity"], *one["where"]):
            cells = (fact["question"], fact["finding"], fact["text"], _told(fact["value"]), _told(fact["n"]))
            lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
        ruled_out = [fact["question"] for fact in one["integrity"] if fact["finding"] == "ruled out"]
        lines += ["", f"Ruled out: {', '.join(ruled_out) or 'nothing'}.", "", "Changed before:"]
        lines += [f"- {_line(line_of(Change(**change)))}" for change in one["changes"]] or ["- nothing"]
    lines += ["", "## What was done", ""]
    done = {entry.data["order"]["key"] for entry in standing(record)}
    for entry in record.timeline:
        if entry.data.get("event") in ("action", "failed", "undone", "stuck", "proposal"):
            key = entry.data.get("order", {}).get("key", "")
            take_back = f" (take it back: `{key}`)" if key in done and entry.data["event"] == "action" else ""
            approve = f" (do it: `{key}`)" if entry.data["event"] == "proposal" else ""
            lines.append(f"- {isoformat(entry.time_us)} {_line(entry.text)}{take_back}{approve}")
    if lines[-1] == "":
        lines.append("Nothing.")
    lines += ["", "## What people wrote", ""]
    notes = [f"- {isoformat(entry.time_us)} {_line(entry.text)}" for entry in events(record, "note")]
    lines += notes or ["Nothing."]
    lines += ["", "## So that it does not come again", "", *(f"- {_line(text)}" for text in prevention(record)), ""]
    return "\n".join(lines)


def prevention(record: Record) -> tuple[str, ...]:
    """Proposes checks and rules that would have seen an incident earlier, or kept it out, by its causes."""
    proposed: dict[str, None] = {}
    for entry in events(record, "triage"):
        for fact in entry.data["integrity"]:
            if fact["finding"] == "found":
                proposed[f"a check in the contract of the feed: {fact['question']} ({fact['text']})"] = None
        if entry.data["cause"] == "release":
            strongest = next((fact["question"] for fact in entry.data["where"] if fact["finding"] == "found"), "")
            proposed[f"a check in the gate for {strongest or 'what the alert saw'}, and a canary for every release"] = (
                None
            )
        if entry.data["cause"] == "drift":
            proposed["an alert on realised quality in the slices that moved, so that drift alone wakes nobody"] = None
        if entry.data["cause"] == "model out":
            proposed["an alert on the latency and errors of the runtime, below the share that took the model out"] = (
                None
            )
        if entry.data["cause"] == "quality":
            proposed["a label-arrival trigger, so that a new version is made before the loss is this large"] = None
    return tuple(proposed) or ("nothing was found that would have; say in the resolution what would",)


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "/")


def _told(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
