"""How what serves came to serve: gates, plans and canaries, the ledger as stretches of time and as lines."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vitok.console import stores
from vitok.console.incident_reading import YOU, home_option
from vitok.console.labelled_reading import labelled
from vitok.console.newest import newest
from vitok.console.wording import plural, time
from vitok.loop import Record
from vitok.loop.release_book import Release
from vitok.policies import ALLOW, Costs, TierPolicy
from vitok.registry import Entry, ModelState, Verdict
from vitok.stats import Estimate, mean_interval, wilson
from vitok.systems.fraud.messages import SYSTEM

if TYPE_CHECKING:
    import polars as pl

MOST_PLANS = 20
MOST_ENTRIES = 200


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
class Gate:
    """What a gate said of a version.

    Attributes:
        version: Such as `"fraud/2"`.
        time: When, in microseconds.
        actor: Who asked.
        verdict: Its checks, with the reasons.
        holds: Whether the verdict still lets the version into Production.
    """

    version: str
    time: int
    actor: str
    verdict: Verdict
    holds: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two that answer beside each other.

    Attributes:
        version: Such as `"fraud/2"`.
        n: Decisions since the canary began.
        stopped: Share of them that was reviewed or blocked.
        n_labelled: How many have a label.
        n_fraud: How many of those are frauds.
        cost: Mean cost of those with a label, in the amounts' currency.
    """

    version: str
    n: int
    stopped: Estimate
    n_labelled: int
    n_fraud: int
    cost: Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class CanaryProgress:
    """A canary that answers now, beside the version it would follow.

    Attributes:
        since: Since when, in microseconds.
        share: Share of the decisions that it gets.
        sides: The canary, then the version in Production.
        one_in: One request in so many was read.
    """

    since: int
    share: float
    sides: tuple[Side, ...]
    one_in: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReleasesSeen:
    """The history of releases.

    Attributes:
        stretches: Who answered when, in order of the beginning.
        plans: Releases by a plan, the latest first, at most `MOST_PLANS`.
        commands: How to go on with the plan that is open: what for, and the command; empty where none is.
        canary: How the canary does that answers now; None without one.
        gates: The latest verdict on each version, the latest first.
        records: Records of releases, the latest first.
        entries: The ledger, the latest first, at most `MOST_ENTRIES`.
        n_entries: How many there are.
        verification: Whether the ledger's chain of hashes holds, in words; empty without a ledger.
        intact: Whether it does.
    """

    stretches: tuple[Stretch, ...]
    plans: tuple[Release, ...]
    commands: tuple[tuple[str, str], ...]
    canary: CanaryProgress | None
    gates: tuple[Gate, ...]
    records: tuple[Record, ...]
    entries: tuple[Entry, ...]
    n_entries: int
    verification: str
    intact: bool

    def __str__(self) -> str:
        head = f"{plural(self.n_entries, 'entry', 'entries')} in the ledger, {plural(len(self.records), 'record')}"
        return "\n".join([head, *(f"  {entry}" for entry in self.entries)])


def releases(home: Path) -> ReleasesSeen:
    """Reads the ledger, the plans and the records of releases."""
    records = tuple(reversed(stores.records(home).list("release")))[:MOST_PLANS]
    with stores.release_book(home) as book:
        plans = () if book is None else book.list(model=SYSTEM)[: -MOST_PLANS - 1 : -1]
    with stores.ledger(home) as ledger:
        history = () if ledger is None else ledger.history(SYSTEM)
        state = ModelState(model=SYSTEM) if ledger is None else ledger.state(SYSTEM)
        verification = None if ledger is None else ledger.verify()
    last = max([entry.time_us for entry in history], default=0)
    end = max(last, _last_decision(home) or 0)
    return ReleasesSeen(
        stretches=stretches(history, end=end),
        plans=plans,
        commands=_commands(home, plans),
        canary=_canary(home, state),
        gates=_gates(history, state),
        records=records,
        entries=tuple(reversed(history))[:MOST_ENTRIES],
        n_entries=len(history),
        verification="" if verification is None else str(verification),
        intact=verification is None or verification.intact,
    )


def step_states(plan: Release) -> tuple[str, ...]:
    """Says of each step of a plan how it went: `"done"`, `"here"`, `"failed"`, `"left out"`, or nothing yet: `""`.

    A version that was pushed past a step has never entered it.
    """
    entered = [event.text for event in plan.events if event.kind == "entered"]
    found = []
    for at, step in enumerate(plan.plan["steps"]):
        if plan.status == "finished" or at < plan.step:
            named = not entered or any(text.startswith(f"{step['name']} of ") for text in entered)
            found.append("done" if named else "left out")
        elif at == plan.step:
            found.append("here" if plan.is_open else "failed")
        else:
            found.append("")
    return tuple(found)


def rehearsal(plan: Release) -> str:
    """Says in words how far the rehearsal of a plan has come, on decisions of before it began; empty without one."""
    place = plan.position
    if not isinstance(place, Mapping) or not {"seen", "matured", "until"} <= set(place):
        return ""
    shares = [event.data.get("share") for event in plan.events if event.kind == "entered"]
    if shares and shares[0] == 1:
        return ""
    told = "Its judges also count decisions of before it began, which both versions have answered again"
    if place["seen"] < place["until"]:
        return f"{told}; they have come to {time(place['seen'])}, of {time(place['until'])}."
    if place["matured"] < place["until"]:
        return f"{told}; the outcomes of those from {time(place['matured'])} on are not in yet."
    return f"{told}."


def _commands(home: Path, plans: tuple[Release, ...]) -> tuple[tuple[str, str], ...]:
    open_one = next((one for one in plans if one.is_open), None)
    if open_one is None:
        return ()
    more = f"--by {YOU} --reason 'WHY'{home_option(home)}"
    asked = [
        ("Approve what asks for it", "approve"),
        ("Ask for the next step at once", "advance"),
        ("Let it go on", "resume") if open_one.status == "paused" else ("Hold it where it is", "pause"),
        ("End it; the version before answers everything again", "abort"),
    ]
    return tuple((what, f"vitok releases {verb} {open_one.release_id} {more}") for what, verb in asked)


def _gates(history: tuple[Entry, ...], state: ModelState) -> tuple[Gate, ...]:
    found: dict[int, Gate] = {}
    for entry in history:
        if entry.kind == "gate" and entry.version is not None:
            found[entry.version] = Gate(
                version=f"{entry.model}/{entry.version}",
                time=entry.time_us,
                actor=entry.actor,
                verdict=Verdict.from_dict(entry.details),
                holds=state.version(entry.version).gate is not None,
            )
    return tuple(sorted(found.values(), key=lambda gate: -gate.time))


def _canary(home: Path, state: ModelState) -> CanaryProgress | None:
    if state.canary is None or state.canary_since is None:
        return None
    found = labelled(home)
    if found is None:
        return None
    recent = found.rows.filter(found.rows["event_time"] >= state.canary_since)
    costs = next(
        (
            policy.costs
            for number in (state.canary, state.production)
            if number and (policy := _policy(home, state, number))
        ),
        Costs(),
    )
    numbers = [state.canary, *([state.production] if state.production is not None else [])]
    return CanaryProgress(
        since=state.canary_since,
        share=state.canary_share or 0.0,
        sides=tuple(_side(f"{SYSTEM}/{number}", recent, costs) for number in numbers),
        one_in=found.one_in,
    )


def _policy(home: Path, state: ModelState, number: int) -> TierPolicy | None:
    return stores.policy(home, state.version(number))


def _side(version: str, rows: "pl.DataFrame", costs: Costs) -> Side:
    own = rows.filter(rows["model_version"] == version)
    known = own.drop_nulls(["label", "amount"])
    cost = costs.realised(known["action"].to_numpy(), known["amount"].to_numpy(), known["label"].to_numpy() == 1.0)
    return Side(
        version=version,
        n=own.height,
        stopped=wilson(int((own["action"] != ALLOW).sum()), own.height),
        n_labelled=known.height,
        n_fraud=int((known["label"] == 1.0).sum()),
        cost=mean_interval(cost, name="cost"),
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
