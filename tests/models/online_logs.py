"""Logs of decisions and outcomes to learn from, and the rule of online_learning once more, in the plainest Python."""

from pathlib import Path
from typing import Any

import numpy as np

from vitok import ids
from vitok.decision import Outcome
from vitok.decisions import DecisionBlock, DecisionLog, LogSchema, OutcomeLog
from vitok.models.online import OnlineModel
from vitok.models.online_features import Buckets, Category, Cross, HashedFeatures, Number
from vitok.models.online_ftrl import Rates
from vitok.models.online_learning import LearningRules

SCHEMA = LogSchema("fraud", ("card",), (("country", "string"), ("amount", "float64")), ("count_1d", "hour"))
FEATURES = HashedFeatures(
    features=(
        Category("card"),
        Category("country"),
        Category("hour"),
        Number("amount", 50.0, 20.0),
        Buckets("count_1d", (1.0, 3.0)),
        Cross(("country", "count_1d")),
    ),
    bits=12,
)
RATES = Rates(alpha=0.2, l1=0.1)


def decisions(n: int, *, seed: int = 0, every: int = 1000) -> list[dict[str, Any]]:
    """n decisions, one each `every` microseconds, with missing values and some times out of order."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        rows.append(
            {
                "request_id": f"r{i}",
                "event_time": (i + 1) * every - int(rng.integers(0, 3 * every)),
                "ingest_time": (i + 1) * every,
                "card": f"c{rng.integers(0, 40)}",
                "country": None if rng.random() < 0.1 else f"C{rng.integers(0, 5)}",
                "amount": float(rng.exponential(60.0)),
                "count_1d": float("nan") if rng.random() < 0.1 else float(rng.integers(0, 6)),
                "hour": float(rng.integers(0, 24)),
                "action": "block" if rng.random() < 0.1 else "allow",
                "propensity": float(rng.choice([1.0, 0.25])),
            }
        )
    return rows


def outcomes(rows: list[dict[str, Any]], *, seed: int = 0, maturity: int = 50_000) -> list[Outcome]:
    """Outcomes of some decisions: early, late, after the maturity, taken back, delivered twice; and of nobody."""
    rng = np.random.default_rng(seed)
    found = []
    for row in rows:
        if rng.random() < 0.3:
            told = row["ingest_time"] + int(rng.exponential(maturity))
            made = {"request_id": row["request_id"], "kind": "fraud", "event_time": told - 5, "source": "bank"}
            found.append((told, Outcome(**made, value=float(rng.random() < 0.7), ingest_time=told)))
            if rng.random() < 0.2:
                back = told + int(rng.exponential(maturity))
                found.append((back, Outcome(**made, value=0.0, ingest_time=back, supersedes=True)))
                found.append((back + 7, Outcome(**made, value=1.0, ingest_time=back + 7)))
            if rng.random() < 0.2:
                found.append((told + 9, Outcome(**made, value=found[-1][1].value, ingest_time=told + 9)))
        if rng.random() < 0.05:
            told = row["ingest_time"]
            made = {"request_id": f"nobody-{told}", "kind": "fraud", "event_time": told}
            found.append((told, Outcome(**made, value=1.0, ingest_time=told)))
        if rng.random() < 0.05:
            made = {"request_id": row["request_id"], "kind": "review", "event_time": row["ingest_time"]}
            found.append((row["ingest_time"], Outcome(**made, value=1.0, ingest_time=row["ingest_time"])))
    return [outcome for _, outcome in sorted(found, key=lambda item: item[0])]


def append_decisions(log: DecisionLog, rows: list[dict[str, Any]]) -> None:
    n = len(rows)
    log.append(
        DecisionBlock(
            decision_id=[ids.uuid7() for _ in rows],
            request_id=[row["request_id"] for row in rows],
            event_time=np.array([row["event_time"] for row in rows]),
            ingest_time=np.array([row["ingest_time"] for row in rows]),
            entities=[[row["card"] for row in rows]],
            request=[[row["country"] for row in rows], [row["amount"] for row in rows]],
            features=np.array([[row["count_1d"], row["hour"]] for row in rows]),
            feature_status=["fresh"] * n,
            model_version=["fraud/1"] * n,
            stage=["Production"] * n,
            route=["champion"] * n,
            route_reason=[""] * n,
            score=[0.5] * n,
            probability=[0.5] * n,
            shadow_version=[None] * n,
            shadow_probability=np.full(n, np.nan),
            policy_version=["tiers/1"] * n,
            action=[row["action"] for row in rows],
            propensity=np.array([row["propensity"] for row in rows]),
            latency_us=[1] * n,
            cost=[0.0] * n,
        )
    )


def write(folder: Path, rows: list[dict[str, Any]], told: list[Outcome], *, block: int = 37) -> tuple[Path, Path]:
    places = folder / "decisions", folder / "outcomes"
    with DecisionLog(places[0], SCHEMA, rows_per_segment=400) as log:
        for i in range(0, len(rows), block):
            append_decisions(log, rows[i : i + block])
    with OutcomeLog(places[1], rows_per_segment=300) as other:
        for i in range(0, len(told), block):
            other.append(told[i : i + block])
    return places


def model() -> OnlineModel:
    return OnlineModel(FEATURES, rates=RATES)


def by_the_rule(
    rows: list[dict[str, Any]], told: list[Outcome], rules: LearningRules, until: int
) -> tuple[OnlineModel, list[str]]:
    """One decision after another, each looking through all outcomes: slow, and easy to read."""
    made = model()
    heard: list[tuple[int, Outcome]] = []
    clock = -(2**62)
    for outcome in told:
        clock = max(clock, outcome.ingest_time)
        again = any(
            (o.request_id, o.kind, o.value, o.event_time, o.source, o.supersedes)
            == (outcome.request_id, outcome.kind, outcome.value, outcome.event_time, outcome.source, outcome.supersedes)
            for _, o in heard
        )
        if outcome.kind == rules.kind and not again:
            heard.append((clock, outcome))
    reached, passed, learned, order = -(2**62), 0, {}, []
    for row in rows:
        own = [(moment, o) for moment, o in heard if o.request_id == row["request_id"]]
        resolved = min([row["event_time"] + rules.maturity, *(moment for moment, _ in own)])
        reached = max(reached, resolved)
        if reached > until:
            break
        while passed < len(heard) and heard[passed][0] <= reached:
            moment, outcome = heard[passed]
            passed += 1
            if outcome.request_id in learned and rules.correct_for:
                label, weight, when, old = learned[outcome.request_id]
                if weight and label != outcome.value and moment <= when + rules.correct_for:
                    change = np.array([weight * (label - outcome.value)])
                    made.ftrl.correct(*made.features.encode([old]), change)
                    learned[outcome.request_id] = outcome.value, weight, when, old
                    order.append(f"correct {outcome.request_id}")
        known = [o.value for moment, o in own if moment <= reached]
        label = known[-1] if known else 0.0
        if row["action"] in rules.censored and not known:
            learned[row["request_id"]] = label, 0.0, reached, row
            continue
        weight = min(1 / row["propensity"], rules.most_weight)
        name = None if rules.slice_by is None else str(row[rules.slice_by])
        made.learn_one(row, label, weight=weight, slice_name=name or "")
        learned[row["request_id"]] = label, weight, reached, row
        order.append(row["request_id"])
    return made, order
