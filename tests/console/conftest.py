"""A home as the rooms below leave it: two versions, a canary, decisions with outcomes, an alert, a release."""

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
from starlette.applications import Starlette

from vitok import decisions, ids, monitoring
from vitok.clock import DAY, HOUR, SystemClock, parse_time
from vitok.console.pages import routes
from vitok.decision import Outcome
from vitok.loop import (
    Actions,
    Change,
    Durable,
    Fact,
    Incidents,
    Order,
    PairedJudge,
    Playbook,
    Records,
    Switches,
)
from vitok.loop.release_book import ReleaseBook
from vitok.loop.release_plan import PlannedJudge, ReleasePlan, Step
from vitok.models import fit_boosted_trees
from vitok.monitoring.delivery import open_delivery
from vitok.monitoring.silences import Silences
from vitok.policies import Costs, TierPolicy
from vitok.registry import Registry, at_least, evaluate
from vitok.serving import handlers
from vitok.serving.budgets import NS, BudgetBook, SpendingBudget
from vitok.stats import Estimate, wilson
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.messages import SYSTEM, log_schema

START = parse_time("2018-07-01")
N_DAYS = 8
A_DAY = 400
ODD_CUSTOMER = "<b>&\"'o"
ODD = "<i>\"'&\u202ex</i>"
POLICY = TierPolicy(costs=Costs(false_block=30.0, review=3.0, reviewer_recall=0.9), pass_through=0.01)


@dataclasses.dataclass(frozen=True)
class Home:
    """The folder, and what was written into it.

    Attributes:
        folder: The home.
        rows: The decisions in the order of the log: id, request_id, time, customer, action, version, route, amount.
        labels: Request to what is known of it.
    """

    folder: Path
    rows: pl.DataFrame
    labels: dict[str, float]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("console") / "home"
    rng = np.random.default_rng(5)
    register(folder, rng)
    log = decisions.DecisionLog(folder / "log" / "decisions", log_schema(), rows_per_segment=1_000)
    outcomes = decisions.OutcomeLog(folder / "log" / "outcomes")
    rows, labels = decide(log, outcomes, rng)
    watch(folder)
    estimate(folder)
    trouble(folder)
    plan(folder)
    budget(folder)
    # The log stays open, so that pages read sealed segments and an open one.
    yield Home(folder, rows, labels)
    log.close()
    outcomes.close()


def budget(folder: Path) -> None:
    book = BudgetBook(folder / "costs" / "budgets.sqlite")
    now = SystemClock().now()
    for team, amount in (("checkout", 0.5), ("recommendations-of-the-web-shop", 250_000.0)):
        book.set(SpendingBudget(team=team, amount=amount, period="month", then="alert"), actor="test", now=now)
    book.lease("checkout", "test", spent=2 * NS, needed=1, now=now)
    book.close()


def values(rng: np.random.Generator, n: int, *, scale: float = 1.0) -> np.ndarray:
    X = rng.lognormal(3.0, 0.6, (n, len(FEATURES.names)))
    X[:, 0] = rng.lognormal(3.5, 0.8, n)
    X[:, 1] *= scale
    X[rng.random(X.shape) < 0.02] = np.nan
    X[:, 0] = np.nan_to_num(X[:, 0], nan=20.0)
    return X


def register(folder: Path, rng: np.random.Generator) -> None:
    registry = Registry(folder)
    X = values(rng, 1_500)
    fraud = (X[:, 0] > 80) | (rng.random(len(X)) < 0.01)
    trees = fit_boosted_trees(X, fraud, names=FEATURES.names, n_trees=8)
    probability = 1 / (1 + np.exp(-trees.score(X)))
    profile = monitoring.ReferenceProfile.fit(
        list(FEATURES.names), X, probability, start=START - 7 * DAY, end=START, ignored=("is_weekend", "is_night")
    )
    metrics = {
        "average_precision": wilson(60, 100).to_dict(),
        "auc": wilson(91, 100).to_dict(),
        "cost_per_decision": wilson(20, 100).to_dict(),
    }
    files: dict[str, Any] = {
        "model.txt": trees.text,
        "signature.json": {"inputs": list(FEATURES.names), "dtype": "float32"},
        "features.json": {"version": FEATURES.version, **FEATURES.describe()},
        "policy.json": POLICY.describe(),
        "profile.json": profile.to_dict(),
        "metrics.json": metrics,
    }
    accepted = evaluate([at_least("average_precision", 0.6, 0.5)])
    refused = evaluate([at_least("average_precision", 0.1, 0.5), at_least("auc", 0.9, 0.8)])
    made = [(1, START - DAY, accepted), (2, START + 4 * DAY, accepted), (3, START + 6 * DAY, refused)]
    for number, now, verdict in made:
        registry.register(SYSTEM, {**files, "note.json": [number]}, now=now, actor="test", reason=f"version {number}")
        registry.ledger.record_gate(SYSTEM, number, verdict, now=now, actor="gate")
        if number == 1:
            registry.ledger.promote(SYSTEM, 1, "Production", reason="the first", actor="test", now=now)
        if number == 2:
            registry.ledger.start_canary(SYSTEM, 2, 0.25, reason="retrained after drift", actor="loop", now=now)
            records = Records(folder)
            opened = records.open(
                "release",
                "canary of fraud/2 beside fraud/1",
                system=SYSTEM,
                version="fraud/2",
                now=now,
                why="retrained after drift",
            )
            records.add(opened.record_id, "25 % of the decisions go to fraud/2", now=now)
    registry.close()


def decide(
    log: decisions.DecisionLog, outcomes: decisions.OutcomeLog, rng: np.random.Generator
) -> tuple[pl.DataFrame, dict[str, float]]:
    frames, labels = [], {}
    for day in range(N_DAYS):
        n = A_DAY
        X = values(rng, n, scale=3.0 if day >= 5 else 1.0)
        times = START + day * DAY + np.sort(rng.integers(0, DAY, n))
        probability = np.clip(rng.beta(0.2, 4.0, n), 0.0, 1.0)
        requests = [f"t{day}-{i}" for i in range(n)]
        tiers = POLICY.decide(probability, X[:, 0], requests)
        canary = (rng.random(n) < 0.25) & (day >= 4)
        customer = [str(key) for key in rng.integers(0, 60, n)]
        if day == N_DAYS - 1:
            customer[-1] = ODD_CUSTOMER
        made = [ids.uuid7() for _ in range(n)]
        version = np.where(canary, "fraud/2", "fraud/1").tolist()
        log.append(
            decisions.DecisionBlock(
                decision_id=made,
                request_id=requests,
                event_time=times,
                ingest_time=times + 1_000,
                entities=[customer, [str(key) for key in rng.integers(0, 90, n)]],
                request=[X[:, 0]],
                features=X,
                feature_status=["fresh"] * n,
                model_version=version,
                stage=np.where(canary, "Staging", "Production").tolist(),
                route=np.where(canary, "canary", "champion").tolist(),
                route_reason=["a hash said so"] * n,
                score=np.log(probability + 1e-9),
                probability=probability,
                shadow_version=[None] * n,
                shadow_probability=np.full(n, np.nan),
                policy_version=[POLICY.version] * n,
                action=tiers.actions,
                propensity=tiers.propensity,
                latency_us=rng.integers(500, 3_000, n),
                cost=np.full(n, 2e-5),
            )
        )
        if day < 4:
            fraud = (rng.random(n) < probability).astype(float)
            came = [
                Outcome(
                    request_id=request,
                    kind="fraud",
                    value=float(value),
                    event_time=int(moment) + 2 * DAY,
                    ingest_time=int(moment) + 2 * DAY,
                    source="chargeback",
                )
                for request, value, moment in zip(requests, fraud, times, strict=True)
            ]
            outcomes.append(came)
            labels |= dict(zip(requests, fraud.tolist(), strict=True))
        frames.append(
            pl.DataFrame(
                {
                    "decision_id": [ids.text(one) for one in made],
                    "request_id": requests,
                    "event_time": times,
                    "customer": customer,
                    "action": tiers.actions,
                    "version": version,
                    "route": np.where(canary, "canary", "champion").tolist(),
                    "amount": X[:, 0],
                }
            )
        )
    # The first is taken back: it was no fraud after all.
    taken_back = Outcome(
        request_id="t0-0",
        kind="fraud",
        value=1.0 - labels["t0-0"],
        event_time=START + 5 * DAY,
        ingest_time=START + 5 * DAY,
        source="bank",
        supersedes=True,
    )
    outcomes.append([taken_back])
    labels["t0-0"] = taken_back.value
    return pl.concat(frames), labels


def watch(folder: Path) -> None:
    registry = Registry(folder)
    profiles = {
        version.name: monitoring.ReferenceProfile.from_dict(registry.load(SYSTEM, version.version).json("profile.json"))
        for version in registry.versions(SYSTEM)
    }
    registry.close()
    sketches = monitoring.Sketches(folder / "monitoring" / "sketches.sqlite")
    sketches.follow(decisions.read(folder / "log" / "decisions"), profiles.get)
    sketches.close()
    alerts = monitoring.Alerts(folder / "monitoring" / "alerts.sqlite")
    rule = monitoring.AlertRule(name="data_drift", severity="warning", playbook="look at the source", windows=2)
    noisy = monitoring.AlertRule(name="quality", severity="critical", playbook="retrain", windows=1, clear_after=1)
    for day in range(1, N_DAYS):
        end = START + day * DAY
        alerts.observe(
            rule,
            system=SYSTEM,
            version="fraud/1",
            window_end=end,
            firing=day >= 5,
            value=0.05 * day,
            bound=0.2,
            reason="customer_count_15m moved",
            now=end + HOUR,
        )
        alerts.observe(
            noisy,
            system=SYSTEM,
            version="fraud/1",
            window_end=end,
            firing=day == 2,
            value=0.4,
            bound=0.5,
            reason="average precision fell",
            now=end + HOUR,
        )
    alerts.close()


def estimate(folder: Path) -> None:
    """Days of estimates of fraud/1, all but the last two with their labels; the last of these is outside."""
    ledger = monitoring.EstimateLedger(folder / "monitoring" / "estimates.sqlite")
    for day in range(N_DAYS):
        start = START + day * DAY
        said = Estimate(name="average_precision", value=0.7, lower=0.65, upper=0.75, n_obs=A_DAY)
        ledger.record("fraud/1", [said, dataclasses.replace(said, name=ODD)], start=start, end=start + DAY, made_at=0)
        if day < N_DAYS - 2:
            value = 0.71 if day < N_DAYS - 3 else 0.5
            known = Estimate(name="average_precision", value=value, lower=value - 0.02, upper=value + 0.02, n_obs=A_DAY)
            ledger.realise("fraud/1", [known], start=start, end=start + DAY, labelled=1.0, as_of=start + 3 * DAY)
    ledger.record(ODD, [said], start=START, end=START + DAY, made_at=0)
    ledger.close()


class _Evidence:
    """What triage is told."""

    def integrity(self, alert: dict[str, Any], now: int) -> list[Fact]:
        return [Fact(question=f"null share of {ODD}", finding="ruled out", text=f"0.1 % {ODD}", value=0.001, n=400)]

    def changes(self, since: int, until: int) -> list[Change]:
        return [Change(time_us=until - 4 * DAY, kind="policy", version="fraud/1", text=f"policy by {ODD}")]

    def where(self, alert: dict[str, Any], now: int) -> list[Fact]:
        return [Fact(question="precision where channel is web", finding="found", text="0.3 against 0.7", value=0.3)]


class _Threshold:
    """An action that can be done."""

    def do(self, order: Order) -> dict[str, Any]:
        return {"was": 0.9}

    def undo(self, order: Order, done: Any) -> None: ...


def trouble(folder: Path) -> None:
    """Two incidents: one with triage, an action and a proposal, and one resolved; a silence; a switch."""
    incidents, durable, switches = Incidents(folder), Durable(folder), Switches(folder)
    playbook = Playbook(
        incidents, Actions(raise_threshold=_Threshold()), _Evidence(), durable=durable, switches=switches
    )
    alerts = monitoring.Alerts(folder / "monitoring" / "alerts.sqlite")
    # Of the alert that cleared before: it is known, and opens no other one.
    (past,) = [alert for alert in alerts.history() if alert.state == "cleared"]
    alerts.close()
    now = START + 3 * DAY
    record = playbook.respond(dataclasses.replace(past, reason=f"precision fell {ODD}"), now=now)
    incidents.note(record.record_id, f"looked at {ODD}", who=ODD, now=now + HOUR)
    ended = incidents.report(dataclasses.replace(past, id=77, rule="absence", system="fraud", version="fraud/2"), now=0)
    incidents.resolve(ended.record_id, f"the cable of {ODD}", who="ann", now=now)
    switches.set("retrain", propose_only=True, who="ann", why=f"audit {ODD}", now=now)
    durable.close()
    database = open_delivery(folder / "monitoring" / "delivery.sqlite")
    ahead = SystemClock().now()
    Silences(database).add({"rule": "data_drift"}, until=ahead + 90 * DAY, who="bo", why=f"known {ODD}", now=ahead)
    database.close()


def plan(folder: Path) -> None:
    """A release by a plan, in its first canary, that waits for an approval."""
    steps = (
        Step(name="shadow", kind="shadow"),
        Step(name=f"canary {ODD}", kind="canary", share=0.25, judges=("paired",)),
        Step(name="full", kind="full", share=1.0, approvals=1),
    )
    made = ReleasePlan(steps=steps, judges={"paired": PlannedJudge(make=PairedJudge)})  # type: ignore[arg-type]
    book = ReleaseBook(folder)
    release = book.begin(SYSTEM, 2, 1, made, actor="loop", reason=f"retrained {ODD}", now=START + 4 * DAY)
    with book.changing(release) as writing:
        writing.set(step=1, entered_at=START + 4 * DAY, decisions=390, waits="more outcomes")
        writing.judged("paired", {}, {"state": "continue", "reason": f"390 decisions {ODD}"})
    book.close()


@dataclasses.dataclass(frozen=True)
class Page:
    """An answer."""

    status: int
    text: str
    headers: httpx.Headers


def get(folder: Path | str, path: str) -> Page:
    """Asks the pages of a home for one."""
    app = Starlette(routes=routes(folder), exception_handlers=handlers())

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://console") as client:
            return await client.get(path)

    found = asyncio.run(ask())
    return Page(found.status_code, found.text, found.headers)
