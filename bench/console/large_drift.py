"""Every page of the console on 1,000 features and a year of hours: the slowest first load of any of them.

The home of that size takes about 4 GB in the folder for temporary files (TMPDIR names another); where it does not fit,
the file says so and ends before it has made anything.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from bench.features._claim import tell
from starlette.applications import Starlette

from vitok import decisions, ids
from vitok.clock import DAY, HOUR
from vitok.console.pages import routes
from vitok.decision import Outcome
from vitok.errors import StoreError
from vitok.loop import Incidents, PairedJudge, PlannedJudge, ReleasePlan, Step
from vitok.loop.release_book import ReleaseBook, ReleaseEvent
from vitok.models import fit_boosted_trees
from vitok.models.online import OnlineModel
from vitok.models.online_features import Buckets, HashedFeatures
from vitok.models.online_learning import LearningRules, LogLearner
from vitok.monitoring import (
    Alert,
    AlertRule,
    Alerts,
    EstimateLedger,
    HourlyCounts,
    ReferenceProfile,
    Sketches,
)
from vitok.monitoring.hours import encode
from vitok.policies import Costs, TierPolicy
from vitok.registry import Registry, at_least, evaluate
from vitok.serving import handlers
from vitok.stats import ADWIN, Estimate
from vitok.systems.fraud.challenger import LEARNER
from vitok.systems.fraud.challenger_serving import FOLDER
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.messages import SYSTEM

BAR = 1.0
START = 19_000 * DAY
SLICED_DAYS, CHANNELS = 3, ("app", "shop", "web")
POLICY = TierPolicy(costs=Costs(), pass_through=0.01)
PAGES = (
    "/",
    "/decisions",
    "/decisions?action=block",
    "/features",
    "/features/customer",
    "/models",
    "/models/1",
    "/runs",
    "/drift",
    "/drift?days=2",
    "/drift?days=56",
    "/drift?days=364",
    "/drift?days=364&against=healthy",
    "/drift?against=last+week",
    "/drift?slice=channel%3Dweb",
    "/drift?find=feature",
    "/drift?feature=feature_0030",
    "/drift?feature=feature_0031&against=healthy&days=364",
    "/calibration",
    f"/calibration?version={SYSTEM}%2F1",
    "/estimates",
    "/detectors",
    "/outcomes",
    "/alerts",
    "/incidents",
    "/incidents/incident-0001",
    "/releases",
    "/costs",
)


def names(n: int) -> tuple[str, ...]:
    return (*FEATURES.names, *(f"feature_{at:04}" for at in range(n - len(FEATURES.names))))


def register(home: Path, columns: tuple[str, ...], rng: np.random.Generator) -> ReferenceProfile:
    X = rng.lognormal(0.0, 1.0, (3_000, len(columns)))
    p = rng.beta(1, 60, len(X))
    profile = ReferenceProfile.fit(
        list(columns), X, p, start=START - 28 * DAY, end=START, slices={"channel": rng.choice(CHANNELS, len(X))}
    )
    trees = fit_boosted_trees(X, (X[:, 0] > 3) | (rng.random(len(X)) < 0.01), names=columns, n_trees=40)
    estimate = Estimate(name="average_precision", value=0.7, lower=0.65, upper=0.75, n_obs=3_000).to_dict()
    files: dict[str, Any] = {
        "model.txt": trees.text,
        "signature.json": {"inputs": list(columns), "dtype": "float32"},
        "features.json": {"version": FEATURES.version, **FEATURES.describe()},
        "policy.json": POLICY.describe(),
        "profile.json": profile.to_dict(),
        "metrics.json": {"average_precision": estimate},
    }
    registry = Registry(home)
    registry.register(SYSTEM, files, now=START, actor="bench", reason="the first")
    registry.ledger.record_gate(SYSTEM, 1, evaluate([at_least("auc", 0.9, 0.5)]), now=START, actor="gate")
    registry.ledger.promote(SYSTEM, 1, "Production", reason="the first", actor="bench", now=START)
    registry.close()
    return profile


def sketch(home: Path, profile: ReferenceProfile, days: int, rng: np.random.Generator) -> None:
    """A year of hours: each hour's counts are those of the reference with noise; some features drift for a while."""
    share = np.concatenate([counts / counts.sum() for counts in profile.counts])
    numbers = json.dumps({"groups": {}, "latency": {}, "n_probability": 0, "probability": 0.0})
    offsets = profile.layout.offsets
    sketches = Sketches(home / "monitoring" / "sketches.sqlite")
    for first in range(0, days, 7):
        hours = 24 * min(7, days - first)
        counts = rng.poisson(200 * share, (hours, len(share))).astype(np.int64)
        for at in range(0, len(profile.columns), 17):
            if (first // 7 + at) % 5 == 0:
                counts[:, offsets[at] : (offsets[at] + offsets[at + 1]) // 2] //= 2
        sliced = hours if first + 7 > days - SLICED_DAYS else 0
        cells = np.array([(hour, which) for hour in range(sliced) for which in range(len(CHANNELS))])
        one = HourlyCounts(
            version=f"{SYSTEM}/1",
            digest=profile.digest,
            hours=START // HOUR + 24 * first + np.arange(hours),
            n=np.full(hours, 200),
            counts=counts,
            numbers=(numbers,) * hours,
            slices=tuple(("channel", name) for name in CHANNELS),
            slice_at=cells.reshape(-1, 2).astype(np.int64),
            slice_n=np.full(len(cells), 66),
            slice_counts=np.repeat(counts[:sliced] // 3, len(CHANNELS), axis=0),
            joint=np.zeros((hours, 0)),
        )
        sketches.absorb([(f"week-{first:04}", encode([one]))])
    sketches.close()


def decide(home: Path, columns: tuple[str, ...], n: int, days: int, rng: np.random.Generator) -> str:
    schema = decisions.LogSchema(SYSTEM, ("customer_id", "terminal_id"), (("amount", "float64"),), columns)
    log = decisions.DecisionLog(home / "log" / "decisions", schema, rows_per_segment=10_000)
    outcomes = decisions.OutcomeLog(home / "log" / "outcomes")
    until, length = START + days * DAY, min(days, 60) * DAY
    found = ""
    for first in range(0, n, 2_000):
        rows = min(2_000, n - first)
        times = until - length + (first + np.sort(rng.integers(0, rows, rows))) * (length // n)
        p = rng.beta(0.3, 20, rows)
        X = rng.lognormal(0.0, 1.0, (rows, len(columns)))
        requests = [f"r{first + at}" for at in range(rows)]
        made = [ids.uuid7() for _ in range(rows)]
        tiers = POLICY.decide(p, X[:, 0] * 50, requests)
        log.append(
            decisions.DecisionBlock(
                decision_id=made,
                request_id=requests,
                event_time=times,
                ingest_time=times,
                entities=[[f"c{key}" for key in rng.integers(0, 500, rows)], ["t1"] * rows],
                request=[(X[:, 0] * 50).tolist()],
                features=X,
                feature_status=["fresh"] * rows,
                model_version=[f"{SYSTEM}/1"] * rows,
                stage=["Production"] * rows,
                route=["champion"] * rows,
                route_reason=["the only one"] * rows,
                score=np.log(p + 1e-9),
                probability=p,
                shadow_version=[None] * rows,
                shadow_probability=np.full(rows, np.nan),
                policy_version=[POLICY.version] * rows,
                action=tiers.actions,
                propensity=tiers.propensity,
                latency_us=rng.integers(500, 3_000, rows).tolist(),
                cost=np.full(rows, 2e-5),
            )
        )
        found = ids.text(made[0])
        fraud = (rng.random(rows) < p).astype(float)
        delay = rng.exponential(4 * DAY, rows).astype(np.int64)
        outcomes.append(
            [
                Outcome(request_id=request, kind="fraud", value=value, event_time=moment, ingest_time=moment)
                for request, value, moment in zip(requests, fraud.tolist(), (times + delay).tolist(), strict=True)
                if moment < until
            ]
        )
    log.close()
    outcomes.close()
    return found


def watch(home: Path, days: int, rng: np.random.Generator) -> None:
    ledger = EstimateLedger(home / "monitoring" / "estimates.sqlite")
    alerts = Alerts(home / "monitoring" / "alerts.sqlite")
    incidents = Incidents(home)
    metrics = ("average_precision", "roc_auc", "brier", "cost", "positive_rate")
    rules = [
        AlertRule(name=f"rule_{at}", severity="warning", playbook="look at it", windows=2, clear_after=2)
        for at in range(8)
    ]
    for day in range(days):
        start, end = START + day * DAY, START + (day + 1) * DAY
        said = [
            Estimate(name=name, value=value, lower=value - 0.1, upper=value + 0.1, n_obs=4_800)
            for name, value in zip(metrics, rng.normal(0.5, 0.05, len(metrics)).tolist(), strict=True)
        ]
        ledger.record(f"{SYSTEM}/1", said, start=start, end=end, made_at=end)
        ledger.realise(f"{SYSTEM}/1", said, start=start, end=end, labelled=0.9, as_of=end + 9 * DAY)
        for rule in rules:
            value = float(rng.random())
            alert = alerts.observe(
                rule,
                system=SYSTEM,
                version=f"{SYSTEM}/1",
                window_end=end,
                firing=value > 0.6,
                value=value,
                bound=0.6,
                reason=f"{value:.2f} is above 0.6",
                now=end,
            )
            if isinstance(alert, Alert) and alert.state == "open":
                record = incidents.report(alert, now=end)
                incidents.note(record.record_id, "looked at it", who="bench", now=end)
    ledger.close()
    alerts.close()


def release(home: Path, days: int) -> None:
    """A verdict of a gate each day, and a release by a plan each week, of which the last is open."""
    registry = Registry(home)
    checks = [at_least(f"check_{at}", 0.9, 0.5) for at in range(12)]
    for day in range(days):
        registry.ledger.record_gate(SYSTEM, 1, evaluate(checks), now=START + day * DAY, actor="gate")
    registry.close()
    steps = (
        Step(name="shadow", kind="shadow", judges=("paired",)),
        Step(name="canary", kind="canary", share=0.1, judges=("paired",)),
        Step(name="full", kind="full", share=1.0, approvals=1),
    )
    plan = ReleasePlan(steps=steps, judges={"paired": PlannedJudge(make=PairedJudge)})
    book = ReleaseBook(home)
    for day in range(0, days, 7):
        now = START + day * DAY
        one = book.begin(SYSTEM, 2 + day // 7, 1, plan, actor="bench", reason="each week", now=now)
        with book.changing(one) as writing:
            writing.judged("paired", {}, {"state": "continue", "reason": "more decisions are needed"})
            for hour in range(24):
                writing.tell(ReleaseEvent(at=now + hour * HOUR, kind="look", who="bench", text="it goes on"))
            if day + 7 < days:
                writing.close("refused", now=now + DAY)
    book.close()


def challenge(home: Path, n: int, days: int, rng: np.random.Generator) -> None:
    """The file of a challenger that has learned each decision and still holds many outcomes of requests to come."""
    until = START + days * DAY
    detector = ADWIN(worse="higher", after_change="keep")
    losses = rng.beta(1, 60, n)
    detector.update_many(losses)
    model = OnlineModel(HashedFeatures(features=(Buckets("amount", (10.0, 50.0)),)))
    learner = LogLearner(
        model,
        LearningRules(kind="fraud", maturity=8 * DAY),
        decisions=home / "log" / "decisions",
        outcomes=home / "log" / "outcomes",
    )
    learner.reached = until
    learner.counts = dataclasses.replace(learner.counts, decisions=n, learned=n, positives=n // 100)
    learner.notes = {
        "published": [[until, "0123456789ab"]],
        "shown": [n, 0],
        "marks": [[at * n // 64, START + at * days * DAY // 64, "0123456789ab"] for at in range(64)],
        "restarts": [
            {"at": START + at * HOUR, "decisions": at, "reason": "its loss has risen", "start": "the start"}
            for at in range(200)
        ],
        "waiting_of_the_bench": [[f"r{at}", until, 0.0, "chargeback"] for at in range(4 * n)],
        "detector": detector.to_bytes().hex(),
        "seen": n,
        "worse_since": None,
    }
    (home / FOLDER).mkdir()
    learner.save(home / FOLDER / LEARNER)


def needed(n_features: int, days: int, n_decisions: int) -> int:
    """Bytes of the home, and a fifth more: 50 bins of a feature and an hour, and the decisions' features."""
    hours = 24 * (days + len(CHANNELS) * SLICED_DAYS)
    return int(1.2 * n_features * (50 * 8 * hours + 9 * n_decisions)) + 200_000_000


@contextlib.contextmanager
def room(wanted: int) -> Iterator[Path]:
    """Gives an empty folder that has room for a home; ends the benchmark where there is none, or none is left.

    Raises:
        SystemExit: If there is too little.
    """

    def free() -> int:
        return shutil.disk_usage(tempfile.gettempdir()).free

    def short(left: int) -> SystemExit:
        return SystemExit(
            f"skipped: the home takes {wanted / 1e9:.1f} GB, and {tempfile.gettempdir()} has {left / 1e9:.1f} GB left; "
            "free some, or set TMPDIR to a folder on a larger disk"
        )

    if free() < wanted:
        raise short(free())
    with tempfile.TemporaryDirectory() as name:
        try:
            yield Path(name)
        except (OSError, StoreError, sqlite3.Error) as error:
            # Others fill the same disk; what they leave while this runs is seen only when it is too little.
            if free() > wanted // 50:
                raise
            raise short(free()) from error


def timed(home: Path, paths: list[str]) -> dict[str, list[tuple[float, int]]]:
    """Loads each page until it is whole, and twice more: seconds and size of each load."""
    found: dict[str, list[tuple[float, int]]] = {}

    async def ask() -> None:
        empty = Starlette(routes=routes(home / "absent"), exception_handlers=handlers())
        app = Starlette(routes=routes(home), exception_handlers=handlers())
        async with (
            httpx.AsyncClient(transport=httpx.ASGITransport(app=empty), base_url="http://console") as idle,
            httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://console") as client,
        ):
            # What a process loads once is no cost of a page.
            for path in PAGES:
                await idle.get(path)
            for path in paths:
                again = 2
                while again:
                    started = time.perf_counter()
                    answer = await client.get(path)
                    found.setdefault(path, []).append((time.perf_counter() - started, len(answer.content)))
                    if answer.status_code != 200:
                        raise RuntimeError(f"{path}: {answer.status_code} {answer.text[:500]}")
                    again -= 'http-equiv="refresh"' not in answer.text

    asyncio.run(ask())
    return found


def main() -> None:
    scale = float(os.environ.get("VITOK_BENCH_SCALE", "1"))
    n_features, days = max(60, round(1_000 * scale)), max(90, round(364 * scale))
    n_decisions = max(2_000, round(60_000 * scale))
    rng = np.random.default_rng(0)
    with room(needed(n_features, days, n_decisions)) as home:
        columns = names(n_features)
        profile = register(home, columns, rng)
        sketch(home, profile, days, rng)
        decision = decide(home, columns, n_decisions, days, rng)
        watch(home, days, rng)
        release(home, days)
        challenge(home, n_decisions, days, rng)
        size = (home / "monitoring" / "sketches.sqlite").stat().st_size
        taken = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
        found = timed(home, [*PAGES, f"/decisions/{decision}"])
    first = {path: max(seconds for seconds, _ in loads[:-1]) for path, loads in found.items()}
    slowest = max(first, key=lambda path: first[path])
    again = statistics.median(loads[-1][0] for loads in found.values())
    loads = {path: len(one) - 1 for path, one in found.items() if len(one) > 2}
    year = sum(seconds for seconds, _ in found["/drift?days=364"][:-1])
    for path, seconds in sorted(first.items(), key=lambda item: -item[1]):
        print(f"{seconds * 1000:7.0f} ms  {found[path][0][1] / 1000:8.0f} kB  {loads.get(path, 1)} loads  {path}")
    shown = re.sub(r"[0-9a-f-]{36}", "ID", slowest)
    tell(
        f"slowest load of {len(found)} pages of the console over {n_features:,} features and {days} days of hours",
        value=1_000 * first[slowest],
        unit="ms",
        bar="< 1000 ms",
        met=first[slowest] < BAR,
        n=n_features * days * 24,
        protocol=(
            f"Each page as the server makes it, in a process that has made none of that home: {profile.layout.n_bins:,}"
            f" bins, {size / 1e9:.2f} GB of sketches in a home of {taken / 1e9:.2f} GB, {n_decisions:,} decisions. The"
            f" slowest was {shown}; loaded again, the median page takes {1_000 * again:.0f} ms. A page of drift stops"
            f" measuring when its time is over and goes on at the next load: the whole period took"
            f" {loads.get('/drift?days=364', 1)} loads, {year:.1f} s."
        ),
    )


if __name__ == "__main__":
    main()
