"""Sixty days of the fraud system with its operator, with drift, poisoned labels, bad challengers and an outage in them.

`python -m bench.loop.sixty_days [SEED ...]`. The rooms are the real ones in one process, driven by the clock of the
events. Seeds 0 to 2 were used while it was written; what is reported stands on those from 100 on.
"""

import dataclasses
import logging
import os
import sys
import tempfile
import time
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.features._claim import tell  # noqa: E402
from bench.loop._sixty_days import (  # noqa: E402
    CHANGE_AT,
    DAYS,
    DELAY,
    LEAK_AT,
    MATURED,
    OUTAGE,
    POISON,
    POISONED_AT,
    Oracles,
    World,
    leaky,
    lived_hours,
    oracles,
    paid,
    world,
    wrong_share,
)

from vitok import decisions, settings  # noqa: E402
from vitok.clock import DAY, HOUR, EventClock  # noqa: E402
from vitok.engines import LmdbStore  # noqa: E402
from vitok.errors import GateRefused, ServiceError  # noqa: E402
from vitok.loop import Cron, TriggerRules  # noqa: E402
from vitok.loop.incidents import events  # noqa: E402
from vitok.policies import Costs  # noqa: E402
from vitok.registry import Registry, Tracker  # noqa: E402
from vitok.serving import Breaker, BreakerRules, HotRequest, LocalModel  # noqa: E402
from vitok.systems.fraud.features import online_features  # noqa: E402
from vitok.systems.fraud.label_events import label_notes  # noqa: E402
from vitok.systems.fraud.messages import SYSTEM, history_note  # noqa: E402
from vitok.systems.fraud.operations import Operator  # noqa: E402
from vitok.systems.fraud.releases import Maker, Workshop, register  # noqa: E402
from vitok.systems.fraud.service import FraudService  # noqa: E402
from vitok.systems.fraud.training import Candidate, Sample  # noqa: E402

SCALE = float(os.environ.get("VITOK_BENCH_SCALE", "1"))
N_CUSTOMERS = max(800, round(5_000 * SCALE))
N_SEEDS = max(1, round(3 * SCALE))
FIRST_SEED = 100
AT_ONCE = 64
BAR = 1.1
# How another team reads the log, who knows of no source that went wrong.
UNGUARDED: dict[str, Any] = {"guarded": False}
LEAKY, POISONED, OWN = "leaky challenger", "poisoned challenger", "the loop's"


@dataclasses.dataclass(frozen=True)
class Counted(Workshop):
    """A workshop that notes how many labels of what it reads are wrong; the world is known to the benchmark only."""

    world: World | None = None
    wrong: list[float] = dataclasses.field(default_factory=list)

    def rows(self, now: int, *, since: int) -> Sample:
        found = super().rows(now, since=since)
        if self.world is not None:
            self.wrong.append(wrong_share(self.world, found))
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lived:
    """What came of the sixty days.

    Attributes:
        seed: Of the world.
        paid: By day.
        oracles: What they would have paid.
        roles: Who made each version.
        poisoned: Versions of the loop itself that learned from wrong labels, by the share of these among its frauds.
        full: Day on which each version came into Production, of those that did.
        ended: How each canary ended.
        offered: Day on which each challenger was offered.
        told: What the operator said, by day.
        alerts: Raised and cleared (None where not): rule, day, day.
        fallbacks: Decisions that the rules answered in the outage, and how many decisions there were.
        refused: Requests that were refused.
        rolled_back: Versions that were.
        actions: What the playbook did, by day.
    """

    seed: int
    paid: np.ndarray
    oracles: Oracles
    roles: dict[int, str]
    poisoned: dict[int, float]
    full: dict[int, float]
    ended: dict[int, tuple[str, float]]
    offered: dict[str, float]
    told: list[tuple[float, str]]
    alerts: list[tuple[str, float, float | None]]
    fallbacks: tuple[int, int]
    refused: int
    rolled_back: list[int]
    actions: list[tuple[float, str]]

    @property
    def bad(self) -> set[int]:
        """The versions that must not reach full traffic."""
        return {number for number, role in self.roles.items() if role in (LEAKY, POISONED)} | {
            number for number, share in self.poisoned.items() if share > 0.1
        }

    @property
    def good(self) -> set[int]:
        """The loop's versions that are not among them and were made after the change."""
        return {number for number, role in self.roles.items() if role == OWN} - self.bad

    @property
    def held(self) -> bool:
        """Whether no bad version reached full traffic, and a good one did."""
        return not self.bad & set(self.full) and bool(self.good & set(self.full))

    @property
    def ratio(self) -> float:
        """What was paid to what the strict oracle would have paid."""
        return float(self.paid.sum() / self.oracles.strict.sum())

    @property
    def to_delayed(self) -> float:
        """What was paid to what an oracle would have paid that has to wait for labels."""
        return float(self.paid.sum() / self.oracles.delayed.sum())

    def seen(self, rules: tuple[str, ...], since: float) -> float:
        """Returns how many days after a moment one of the rules first raised an alert; NaN where none did."""
        return min(
            (raised - since for rule, raised, _ in self.alerts if rule in rules and raised >= since), default=nan
        )

    @property
    def days(self) -> dict[str, float]:
        """Days from each planted thing to what was to come of it; NaN where it did not."""
        numbers = {role: number for number, role in self.roles.items()}
        ends = {role: self.ended.get(numbers.get(role, 0), ("", nan))[1] for role in (LEAKY, POISONED)}
        begun = dict(self.offered)
        good = min((day for number, day in self.full.items() if number in self.good and day > CHANGE_AT), default=nan)
        return {
            "change to drift alert": self.seen(("data_drift", "prediction_drift"), CHANGE_AT),
            "change to quality alert": self.seen(("quality", "calibration"), CHANGE_AT),
            "change to new version at full": good - CHANGE_AT,
            "poison to alert": self.seen(("label_source",), POISON[0]),
            "outage to alert": self.seen(("fallback", "fallback_1h"), OUTAGE[0] / 24),
            "leaky canary": ends[LEAKY] - begun.get(LEAKY, nan),
            "poisoned canary": ends[POISONED] - begun.get(POISONED, nan),
        }


def prepare(home: Path, found: World, workshop: Workshop) -> Candidate:
    """Fits the first version, puts it into Production, and fills the online store up to the first day."""
    first = workshop.first(found.timeline)
    registry, tracker = Registry(home), Tracker(home)
    made = register(
        workshop, registry, tracker, first, name="first version", now=found.begin, actor="bench", key="first"
    )
    why = None if made.verdict.accepted else "the sixty days begin with it whatever its gate says"
    registry.ledger.promote(
        SYSTEM, made.version, "Production", reason="first", actor="bench", now=found.begin, override=why
    )
    registry.close()
    columns = [found.transactions[name] for name in ("customer_id", "terminal_id", "amount")]
    times = found.transactions["event_time"].to_physical()
    notes = pl.Series([history_note(*row) for row in zip(times, *columns, strict=True)], dtype=pl.Binary)
    store = LmdbStore(home / "online")
    online_features(store).backfill(
        {"transactions": found.transactions, "labels": found.labels},
        until=found.begin,
        notes={"transactions": notes, "labels": label_notes(found.labels)},
    )
    store.close()
    return first


class SixtyDays:
    """One world lived through by the service and its operator."""

    def __init__(self, home: Path, found: World, seed: int) -> None:
        self.home, self.world, self.seed = home, found, seed
        self.costs = Costs()
        before = found.rows.filter(pl.col("event_time") < pl.lit(found.begin).cast(pl.Datetime("us", "UTC")))
        self.arguments = (home, before, found.labels, found.fingerprint, self.costs, found.timeline.start)
        self.workshop = Counted(*self.arguments, world=found)
        self.first = prepare(home, found, Workshop(*self.arguments))
        self.clock = EventClock(found.begin)
        self.service = FraudService(home, clock=self.clock, deadline=3600 - 1)
        self.registry, self.tracker = Registry(home), Tracker(home)
        self.maker = Maker(self.workshop, self.registry, self.tracker, label_delay=DELAY * DAY)
        self.roles: dict[int, str] = {1: "first"}
        self.poisoned: dict[int, float] = {}
        self.told: list[tuple[float, str]] = []
        self.operator = Operator(
            home,
            self.registry,
            self.maker,
            costs=self.costs,
            label_delay=DELAY * DAY,
            triggers=TriggerRules(schedule=Cron("0 0 * * 1"), cool_down=2 * DAY, runs_a_week=3),
            min_matured=MATURED * DAY,
            tell=self.tell,
            refit=self.maker.refit,
        )
        self.refused = 0
        self.offered: dict[str, float] = {}
        self.waiting = [(LEAK_AT, LEAKY), (POISONED_AT, POISONED)]

    def tell(self, moment: int, text: str) -> None:
        self.told.append(((moment - self.world.begin) / DAY, text))

    def run(self) -> Lived:
        for hour in lived_hours(self.world):
            number = (hour.start - self.world.begin) // HOUR
            if number % 24 == 0:
                self.offer(hour.start)
            self.service.versions.refresh()
            self.hour(hour.outcomes, hour.bodies, out=OUTAGE[0] <= number < OUTAGE[1])
            now = hour.start + HOUR
            self.clock.advance(now)
            self.operator.hour(now)
            if now % DAY == 0:
                self.day(now)
        self.service.close()
        lived = self.read()
        self.operator.close()
        self.registry.close()
        return lived

    def hour(self, outcomes: Any, bodies: Any, *, out: bool) -> None:
        """Sends an hour's outcomes and requests; where the models are out, each of them fails."""
        self.models(out=out)
        for body in outcomes:
            assert self.service.learn(body).status == 200
        for i in range(0, len(bodies), AT_ONCE):
            arrived = time.perf_counter_ns()
            replies = self.service.handle([HotRequest(body, arrived, []) for body in bodies[i : i + AT_ONCE]])
            self.refused += sum(reply.status != 200 for reply in replies)

    def models(self, *, out: bool) -> None:
        """Puts each model behind a breaker that goes by the clock of the events, and breaks or mends it."""
        current = self.service.versions.current
        for model in (current.champion, current.canary, current.previous):
            if model is None:
                continue
            target = model.target
            if not isinstance(target.breaker, Timed):
                target.breaker = Timed(self.clock)
                target.mended = target.model  # type: ignore[attr-defined]
            target.model = LocalModel(target.name, _down) if out else target.mended  # type: ignore[attr-defined]

    def day(self, now: int) -> None:
        known, before = len(self.workshop.wrong), self.operator.latest_retrained
        self.operator.day(now)
        number = self.operator.latest_retrained
        if number is not None and number != before:
            self.roles[number] = OWN
            self.poisoned[number] = max(self.workshop.wrong[known:], default=0.0)

    def offer(self, now: int) -> None:
        """Lets another team offer its version, once no other is on trial."""
        day = (now - self.world.begin) // DAY
        if not self.waiting or day < self.waiting[0][0] or self.operator.releasing.busy(now):
            return
        _, role = self.waiting.pop(0)
        # Another team reads the same tables; nobody has told it of the source that went wrong.
        plain = Workshop(*self.arguments, **UNGUARDED)
        if role == LEAKY:
            candidate = leaky(plain, now)
        else:
            candidate = plain.again(now, label_delay=DELAY * DAY, changed=None, incumbent=None)
        made = register(
            plain, self.registry, self.tracker, candidate, name=role, now=now, actor="another team", key=role
        )
        self.roles[made.version] = role
        self.offered[role] = day
        self.tell(now, f"{role} {made.name}: gate {made.verdict.reason}")
        try:
            self.operator.releasing.begin(made.version, now=now, actor="another team", reason=role, key=role)
            self.operator.releasing.tick(now)
        except GateRefused as error:
            self.tell(now, f"{made.name} has no canary: {error}")
            return

    def read(self) -> Lived:
        begin = self.world.begin

        def day(moment: int) -> float:
            return (moment - begin) / DAY

        logged = decisions.read(self.home / "log" / "decisions")
        history = self.registry.ledger.history(SYSTEM)
        full = {
            entry.version: day(entry.time_us)
            for entry in reversed(history)
            if entry.kind == "promoted" and entry.stage_to == "Production"
        }
        bounds = (pl.lit(begin + hour * HOUR).cast(pl.Datetime("us", "UTC")) for hour in OUTAGE)
        during = logged.filter(pl.col("event_time").is_between(*bounds, closed="left"))
        return Lived(
            seed=self.seed,
            paid=paid(self.world, logged, self.costs),
            oracles=self.oracles(),
            roles=self.roles,
            poisoned=self.poisoned,
            full=full,
            ended={
                entry.version: (str(entry.details.get("verdict")), day(entry.time_us))
                for entry in history
                if entry.kind == "canary_ended"
            }
            | {
                release.version: ("refused", day(release.closed_at))
                for release in self.operator.releasing.releases.book.list(model=SYSTEM)
                if release.step < 0 and release.closed_at is not None
            },
            offered=self.offered,
            told=self.told,
            alerts=[
                (alert.rule, day(alert.raised_at), None if alert.cleared_at is None else day(alert.cleared_at))
                for alert in self.operator.alerts.history()
            ],
            fallbacks=(int((during["model_version"] == "rules").sum()), len(during)),
            refused=self.refused,
            rolled_back=[entry.version for entry in history if entry.kind == "rolled_back"],
            actions=[
                (day(entry.time_us), str(entry.data["action"]))
                for record in self.operator.incidents.records.list("incident")
                for entry in events(record, "action")
            ],
        )

    def oracles(self) -> Oracles:
        with tempfile.TemporaryDirectory() as nothing:
            clean = Workshop(
                Path(nothing), self.world.rows, self.world.labels, "", self.costs, self.world.timeline.start
            )
            return oracles(self.world, self.seed, N_CUSTOMERS, clean, self.first)


def _down(_: np.ndarray) -> np.ndarray:
    raise ServiceError("the runtime is down")


class Timed(Breaker):
    """A breaker that goes by the clock of the events."""

    def __init__(self, clock: EventClock) -> None:
        super().__init__(BreakerRules(), clock=lambda: clock.now() * 1000)


def live(seed: int) -> Lived:
    """Lives through the sixty days of a seed."""
    with tempfile.TemporaryDirectory() as folder:
        return SixtyDays(Path(folder), world(seed, N_CUSTOMERS), seed).run()


def show(found: Lived) -> None:
    """Tells people how it went, beside the line."""
    lines = [f"seed {found.seed}"]
    lines += [f"  {day:5.1f}  {text[:260]}" for day, text in found.told]
    lines += [
        f"  alert {rule}: {raised:.0f} to {'the end' if over is None else over}" for rule, raised, over in found.alerts
    ]
    lines += [f"  the playbook: {action} on day {day:.1f}" for day, action in found.actions]
    lines.append(f"  full {found.full}; ended {found.ended}; roles {found.roles}; wrong {found.poisoned}")
    strict, ways = found.oracles.strict.sum(), dataclasses.asdict(found.oracles)
    ways["ours"] = found.paid
    named = ("ours", "strict", "delayed", "stale", "rules")
    lines.append("  " + ", ".join(f"{name} {ways[name].sum() / strict:.3f}" for name in named))
    lines.append(f"  served the oracle: {found.oracles.chosen}; outage {found.fallbacks}; refused {found.refused}")
    for first in range(0, DAYS, 5):
        part = slice(first, first + 5)
        costs = ", ".join(f"{name} {ways[name][part].sum():.0f}" for name in named)
        lines.append(f"  days {first} to {first + 4}: {costs}")
    print(*lines, sep="\n", file=sys.stderr, flush=True)


def main(*seeds: str) -> None:
    """Lives through the sixty days of each seed, and prints the line."""
    # Each batch of the outage would be told on the way.
    for name in ("vitok.systems.fraud.model", "vitok.fraud"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    chosen = [int(seed) for seed in seeds] or list(range(FIRST_SEED, FIRST_SEED + N_SEEDS))
    found = []
    for seed in chosen:
        with settings.using(seed=seed):
            found.append(live(seed))
        show(found[-1])
    held = sum(one.held for one in found)
    ratio, delayed = (
        sum(float(one.paid.sum()) for one in found) / sum(float(getattr(one.oracles, name).sum()) for one in found)
        for name in ("strict", "delayed")
    )
    waiting, stale = (
        sum(float(getattr(one.oracles, name).sum()) for one in found)
        / sum(float(one.oracles.strict.sum()) for one in found)
        for name in ("delayed", "stale")
    )
    times = "; ".join(f"{name} {' / '.join(f'{one.days[name]:.0f}' for one in found)} d" for name in found[0].days)
    actions = sorted({action for one in found for _, action in one.actions})
    tell(
        claim="sixty days with drift, poisoned labels, a bad challenger and an outage: cost to the oracle's",
        value=ratio,
        unit="times the strict oracle's cost",
        bar=f"<= {BAR}; bad versions never at full traffic, a good one is",
        met=ratio <= BAR and held == len(found),
        n=len(found),
        protocol=(
            f"Seeds {', '.join(map(str, chosen))}; {N_CUSTOMERS:,} customers, labels after {DELAY} days, the change on "
            f"day {CHANGE_AT}. Runs in which no bad version reached full traffic and a good one did: {held} of "
            f"{len(found)}; bad ones offered or made: {' / '.join(str(len(one.bad)) for one in found)}. The strict "
            "oracle serves from the first hour of each regime the cheapest, in hindsight, of a version fitted on clean "
            "rows of that regime, one of the other and the rules; ours by seed "
            f"{' / '.join(f'{one.ratio:.3f}' for one in found)} of it. An oracle that knows the hour of the change and "
            f"which labels are wrong, but waits for labels, pays {waiting:.3f} of it, and ours is {delayed:.3f} of "
            f"that; never retraining pays {stale:.3f}. Days: {times}. Alerts "
            f"{' / '.join(str(len(one.alerts)) for one in found)}, roll backs "
            f"{' / '.join(str(len(one.rolled_back)) for one in found)}, the playbook's steps "
            + (
                ", ".join(
                    f"{action} {' / '.join(str(sum(name == action for _, name in one.actions)) for one in found)}"
                    for action in actions
                )
                or "none"
            )
            + f"; decisions by rules in the outage {' / '.join('{} of {}'.format(*one.fallbacks) for one in found)}; "
            f"requests refused {sum(one.refused for one in found)}."
        ),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
