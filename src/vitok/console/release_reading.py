"""How what serves came to serve: the ledger as stretches of time and as lines, and the records of it."""

import dataclasses
from pathlib import Path

from vitok.console import stores
from vitok.console.newest import newest
from vitok.console.wording import plural, time
from vitok.loop import Record
from vitok.registry import Entry
from vitok.systems.fraud.messages import SYSTEM


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stretch:
    """A stretch of time in which a version answered.

    Attributes:
        version: Such as `"fraud/2"`.
        kind: `"production"` or `"canary"`.
        start: When it began, in microseconds.
        end: When it ended, in microseconds; the end of the chart where it still lasts.
        open: Whether it still lasts.
        share: Share of the decisions.
    """

    version: str
    kind: str
    start: int
    end: int
    open: bool
    share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReleasesSeen:
    """The history of releases.

    Attributes:
        stretches: Who answered when, in order of the beginning.
        records: Releases and incidents, the latest first.
        entries: The ledger, the latest first.
        verification: Whether the ledger's chain of hashes holds, in words; empty without a ledger.
        intact: Whether it does.
    """

    stretches: tuple[Stretch, ...]
    records: tuple[Record, ...]
    entries: tuple[Entry, ...]
    verification: str
    intact: bool

    def __str__(self) -> str:
        head = f"{plural(len(self.entries), 'entry', 'entries')} in the ledger, {plural(len(self.records), 'record')}"
        return "\n".join([head, *(f"  {entry}" for entry in self.entries)])


def releases(home: Path) -> ReleasesSeen:
    """Reads the ledger and the records of releases and incidents."""
    records = tuple(reversed(stores.records(home).list()))
    with stores.ledger(home) as ledger:
        if ledger is None:
            return ReleasesSeen(stretches=(), records=records, entries=(), verification="", intact=True)
        history = ledger.history(SYSTEM)
        verification = ledger.verify()
    last = max([entry.time_us for entry in history], default=0)
    end = max(last, _last_decision(home) or 0)
    return ReleasesSeen(
        stretches=stretches(history, end=end),
        records=records,
        entries=tuple(reversed(history)),
        verification=str(verification),
        intact=verification.intact,
    )


def stretches(history: tuple[Entry, ...], *, end: int) -> tuple[Stretch, ...]:
    """Turns entries of the ledger into stretches in which versions answered.

    Args:
        history: Entries of one model, in order.
        end: Where stretches that still last are drawn to, in microseconds.
    """
    found: list[Stretch] = []
    running: dict[str, Entry] = {}

    def close(kind: str, at: int, *, still: bool = False) -> None:
        begun = running.pop(kind, None)
        if begun is not None:
            share = float(begun.details.get("share", 1.0)) if kind == "canary" else 1.0
            version = f"{begun.model}/{begun.version}"
            found.append(Stretch(version=version, kind=kind, start=begun.time_us, end=at, open=still, share=share))

    for entry in history:
        leaves = entry.stage_from == "Production" and entry.stage_to != "Production"
        if leaves:
            close("production", entry.time_us)
        if entry.kind == "promoted" and entry.stage_to == "Production":
            close("production", entry.time_us)
            running["production"] = entry
        elif entry.kind == "canary_started":
            close("canary", entry.time_us)
            running["canary"] = entry
        elif entry.kind == "canary_ended":
            close("canary", entry.time_us)
    for kind in list(running):
        close(kind, max(end, running[kind].time_us), still=True)
    return tuple(sorted(found, key=lambda item: (item.start, item.kind)))


def _last_decision(home: Path) -> int | None:
    folder = stores.logs(home)
    if folder is None:
        return None
    rows, _ = newest(folder / "decisions", ("event_time",), None, skip=0, most=1)
    return stores.microseconds(rows[0]["event_time"]) if rows else None


def told(stretch: Stretch) -> str:
    """Writes a stretch in a sentence."""
    what = "served" if stretch.kind == "production" else f"canary at {100 * stretch.share:g} %"
    until = "until now" if stretch.open else f"to {time(stretch.end)}"
    return f"{stretch.version} {what}, {time(stretch.start)} {until}"
