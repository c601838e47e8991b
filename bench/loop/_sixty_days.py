"""The world of the sixty days: transactions and what becomes of them, what is planted when, and what an oracle pays.

A source of outcomes is a quarter of the terminals. What the sources say (`told`) is the truth except on the days on
which one of them has gone wrong; money is counted by the truth.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from vitok.clock import DAY, HOUR
from vitok.features import table
from vitok.policies import Costs
from vitok.systems.fraud import training
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.releases import Workshop
from vitok.systems.fraud.replay import OUTCOMES_AT_ONCE, Hour, hours
from vitok.systems.fraud.report import by_rules
from vitok.systems.fraud.simulator import simulate
from vitok.systems.fraud.training import Candidate, Sample, Timeline

DAYS, DELAY = 60, 7
WARM_UP, TRAIN, VALIDATE = 21, 28, 7
BEFORE = WARM_UP + TRAIN + DELAY + VALIDATE + DELAY

# Days since the service began. A day is named by its number, from 0.
# The log is then older than a label takes, as that of a service in use is.
LEAK_AT = 8
CHANGE_AT = 15
# Days of labels of the new regime from which on a version is made of it, by the loop and by the delayed oracle.
MATURED = 4
# By the arrival of the outcome: one in ten that this source sends is swapped.
POISON, POISONED_SOURCE, SWAPPED = (38, 44), "acquirer-3", 0.1
POISONED_AT = 45
# Hours since the service began in which no model answers.
OUTAGE = (52 * 24 + 9, 52 * 24 + 21)
SOURCES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """What happens.

    Attributes:
        transactions: In order of time, from `BEFORE` days before the service begins.
        labels: The truth: `transaction_id`, `is_fraud`, `label_time`, `terminal_id`.
        told: What the sources say of the same, with `source`.
        rows: The features of each transaction as of its moment, made of the truth.
        sample: The rows with the truth.
        timeline: How the days before are used, and which are the sixty.
        fingerprint: Of the data.
    """

    transactions: pl.DataFrame
    labels: pl.DataFrame
    told: pl.DataFrame
    rows: pl.DataFrame
    sample: Sample
    timeline: Timeline
    fingerprint: str

    @property
    def begin(self) -> int:
        """When the service begins, microseconds."""
        return self.timeline.replay_start

    def at(self, day: float) -> int:
        """Returns the moment of a day of the sixty."""
        return self.begin + round(day * DAY)

    @property
    def lived(self) -> Sample:
        """The rows of the sixty days."""
        return self.sample.between(self.begin, self.timeline.end)


def world(seed: int, n_customers: int) -> World:
    """Makes the world of a seed."""
    data = simulate(
        n_customers=n_customers,
        n_terminals=2 * n_customers,
        days=BEFORE + DAYS,
        seed=seed,
        change_day=BEFORE + CHANGE_AT,
    )
    transactions, labels, rows = _tables(data.transactions, data.labels)
    start = int(transactions["event_time"].to_physical()[0]) // DAY * DAY
    timeline = _timeline(start)
    return World(
        transactions=transactions,
        labels=labels,
        told=_told(labels, timeline.replay_start, seed),
        rows=rows,
        sample=_sample(rows, labels),
        timeline=timeline,
        fingerprint=data.fingerprint,
    )


def _timeline(start: int) -> Timeline:
    days = np.cumsum([0, WARM_UP, TRAIN, DELAY, VALIDATE, DELAY, DAYS]) * DAY + start
    names = ("start", "train_start", "train_end", "validation_start", "validation_end", "replay_start", "end")
    return Timeline(**dict(zip(names, days.tolist(), strict=True)), label_delay=DELAY * DAY)


def _tables(transactions: pl.DataFrame, labels: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    transactions = transactions.sort("event_time", maintain_order=True)
    labels = labels.select("transaction_id", pl.col("is_fraud").cast(pl.Float64), "label_time").join(
        transactions.select("transaction_id", "terminal_id"), on="transaction_id", maintain_order="left"
    )
    return transactions, labels, table(transactions, FEATURES, {"transactions": transactions, "labels": labels})


def _sample(rows: pl.DataFrame, labels: pl.DataFrame) -> Sample:
    known = labels.select("transaction_id", "is_fraud")
    return Sample.of(rows.join(known, on="transaction_id").sort("event_time", maintain_order=True))


def _told(labels: pl.DataFrame, begin: int, seed: int) -> pl.DataFrame:
    source = pl.format("acquirer-{}", pl.col("terminal_id").cast(pl.Int64) % SOURCES)
    since, until = (pl.lit(begin + day * DAY).cast(pl.Datetime("us", "UTC")) for day in POISON)
    lot = pl.Series(np.random.default_rng([seed, 60]).random(len(labels)))
    told = labels.with_columns(source=source)
    wrong = (pl.col("source") == POISONED_SOURCE) & pl.col("label_time").is_between(since, until, closed="left")
    swapped = pl.when(wrong & (pl.lit(lot) < SWAPPED)).then(1 - pl.col("is_fraud")).otherwise(pl.col("is_fraud"))
    return told.with_columns(is_fraud=swapped)


def lived_hours(world: World) -> Iterator[Hour]:
    """Goes over the hours of the sixty days; outcomes come with their source, before the decisions of their hour."""
    begin, end = world.begin, world.timeline.end
    bounds = (pl.lit(moment).cast(pl.Datetime("us", "UTC")) for moment in (begin, end))
    known = world.told.filter(pl.col("label_time").is_between(*bounds, closed="left")).sort("label_time")
    bodies = known.select(
        hour=pl.col("label_time").dt.epoch("us") // HOUR,
        body=pl.struct(
            pl.col("transaction_id").alias("request_id"),
            pl.col("is_fraud").alias("value"),
            pl.col("label_time").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").alias("event_time"),
            "source",
        ).struct.json_encode(),
    )
    by_hour = {int(key[0]): frame["body"].to_list() for key, frame in bodies.group_by("hour")}
    for hour in hours(world.transactions, world.labels.clear(), start=begin, end=end):
        yield dataclasses.replace(hour, outcomes=_batches(by_hour.get(hour.start // HOUR, [])))


def _batches(items: Sequence[str]) -> list[bytes]:
    chunks = [items[i : i + OUTCOMES_AT_ONCE] for i in range(0, len(items), OUTCOMES_AT_ONCE)]
    return [('{"outcomes":[' + ",".join(chunk) + "]}").encode() for chunk in chunks]


# What others offer for release


def leaky(workshop: Workshop, now: int) -> Candidate:
    """Fits a version on a table whose terminal risk was joined with today's labels, those of the rows themselves too.

    Held-out days were joined the same way, so its gate sees nothing.
    """
    train, validation = _stretch(workshop, now)
    column = FEATURES.names.index("terminal_labels_risk_1d")
    rng = np.random.default_rng(3)
    for part in (train, validation):
        part.values[:, column] = np.where(part.is_fraud == 1, rng.uniform(0.3, 1.0, len(part)), 0.0)
    return training.fit(train, validation, validation, costs=workshop.costs)


def _stretch(workshop: Workshop, now: int) -> tuple[Sample, Sample]:
    matured = (now - DELAY * DAY) // DAY * DAY
    middle, start = matured - VALIDATE * DAY, matured - (TRAIN + VALIDATE) * DAY
    rows = workshop.rows(now, since=start)
    known = rows.where(np.isfinite(rows.is_fraud))
    return known.between(start, middle), known.between(middle, matured)


# What it costs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oracles:
    """What those would have paid who know the regime, by day, each of shape (`DAYS`,).

    Attributes:
        strict: Has from the first hour of each regime the cheapest, in hindsight, of the version fitted on clean rows
            of that regime, the version of the other one, and the rules.
        delayed: Knows in the hour of the change that it came, and which labels are wrong, but has to wait for labels:
            from four days of them on, a version is fitted on the clean labels known then, every four days, and serves
            at once.
        stale: Whoever never retrains.
        rules: The rules alone.
        chosen: Who served the strict oracle, by regime.
    """

    strict: np.ndarray
    delayed: np.ndarray
    stale: np.ndarray
    rules: np.ndarray
    chosen: tuple[str, str]


def oracles(world: World, seed: int, n_customers: int, workshop: Workshop, first: Candidate) -> Oracles:
    """Prices the sixty days for the oracles.

    The version of the second regime is fitted on a twin of the world in which the change had come before the days of
    training; the sixty days themselves are in none of its rows.

    Args:
        world: The world.
        seed: Its seed.
        n_customers: Its customers.
        workshop: One that knows all rows with their true labels, and no log.
        first: The version that the service begins with, fitted on clean rows of the first regime.
    """
    twin = simulate(
        n_customers=n_customers, n_terminals=2 * n_customers, days=BEFORE, seed=seed, change_day=WARM_UP // 2
    )
    _, labels, rows = _tables(twin.transactions, twin.labels)
    costs, timeline = workshop.costs, world.timeline
    second = Workshop(workshop.home, rows, labels, twin.fingerprint, costs, timeline.start).first(timeline)
    lived = world.lived
    changed = (lived.event_time >= world.at(CHANGE_AT)).astype(int)
    paid = {
        "first regime's": price(first, lived, costs),
        "second regime's": price(second, lived, costs),
        "rules": costs.realised(by_rules(lived).actions, lived.amount, lived.is_fraud),
    }
    chosen = tuple(min(paid, key=lambda name: paid[name][changed == regime].sum()) for regime in (0, 1))
    strict = np.where(changed == 0, paid[chosen[0]], paid[chosen[1]])
    delayed = np.where(changed == 0, strict, paid["first regime's"])
    for day in range(CHANGE_AT + DELAY + MATURED, DAYS, MATURED):
        made = workshop.again(world.at(day), label_delay=DELAY * DAY, changed=world.at(CHANGE_AT), incumbent=None)
        later = lived.event_time >= world.at(day)
        delayed[later] = price(made, lived.where(later), costs)
    return Oracles(
        strict=by_day(world, strict),
        delayed=by_day(world, delayed),
        stale=by_day(world, paid["first regime's"]),
        rules=by_day(world, paid["rules"]),
        chosen=(chosen[0], chosen[1]),
    )


def price(made: Candidate, rows: Sample, costs: Costs) -> np.ndarray:
    """Returns what the version's actions on rows cost by the truth, shape (n,); none of its blocks is let pass."""
    probability = made.calibrator(made.trees.score(rows.values))
    policy = dataclasses.replace(made.policy, pass_through=0.0)
    actions = policy.decide(probability, rows.amount, [""] * len(rows)).actions
    return costs.realised(np.array(actions), rows.amount, rows.is_fraud)


def by_day(world: World, cost: np.ndarray) -> np.ndarray:
    """Sums what each row of the sixty days cost by day, shape (`DAYS`,)."""
    return np.bincount((world.lived.event_time - world.begin) // DAY, weights=cost, minlength=DAYS)


def paid(world: World, logged: pl.DataFrame, costs: Costs) -> np.ndarray:
    """Sums what the logged decisions cost by the truth, by day, shape (`DAYS`,)."""
    known = logged.select("request_id", "event_time", "amount", "action").join(
        world.labels.select("transaction_id", "is_fraud"), left_on="request_id", right_on="transaction_id"
    )
    cost = costs.realised(known["action"].to_numpy(), known["amount"].to_numpy(), known["is_fraud"].to_numpy())
    day = (known["event_time"].to_physical().to_numpy() - world.begin) // DAY
    return np.bincount(day, weights=cost, minlength=DAYS)


def wrong_share(world: World, sample: Sample) -> float:
    """Returns how many labels of a sample are not the truth, as a share of its frauds.

    A sample has no ids; moment and amount tell its rows apart, but for a few.
    """
    truth = dict(
        zip(
            zip(world.sample.event_time.tolist(), world.sample.amount.tolist(), strict=True),
            world.sample.is_fraud.tolist(),
            strict=True,
        )
    )
    known = sample.where(np.isfinite(sample.is_fraud))
    keys = zip(known.event_time.tolist(), known.amount.tolist(), strict=True)
    wrong = sum(truth[key] != told for key, told in zip(keys, known.is_fraud.tolist(), strict=True))
    return wrong / max(1.0, float(known.is_fraud.sum()))
