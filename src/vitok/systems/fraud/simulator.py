"""Card transactions with fraud, simulated by the published procedure of the Fraud Detection Handbook."""

import dataclasses
import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from vitok.clock import DAY, SECOND, isoformat, parse_time
from vitok.errors import InvalidInput
from vitok.systems.fraud.transactions import Transactions

_SIDE = 100.0
_SECONDS = 86_400
_LARGE, _TERMINAL, _CARD = 1, 2, 3
LIMIT = 220.0
_TERMINAL_DAYS = 28
_CARD_DAYS = 14
_FACTOR = 5.0

# The concept change; `simulate` describes it.
_CHANGED_TERMINAL_DAYS = 7
_NIGHT_SHARE = 0.7
_NIGHT = (1 * 3600, 5 * 3600)
_BELOW_LIMIT = (150.0, 219.99)
_BELOW_LIMIT_SHARE = 0.0015
_BURSTS = 2.5
_BURST_SIZE = (5, 11)
_BURST_GAP = (15.0, 120.0)
_BURST_AMOUNT = (0.3, 1.2)
_AMOUNT_GROWTH = 1.15
_EVENING_SHARE = 0.15
_EVENING = (19.5 * 3600, 1.5 * 3600)

# Customers whose terminals in reach are looked up at once: bounds memory, changes no value.
_CHUNK = 2000

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclasses.dataclass(kw_only=True)
class _Payments:
    """Rows before they are sorted; `second` counts from the first day's midnight."""

    customer: Integers
    terminal: Integers
    second: Integers
    amount: Floats
    scenario: NDArray[np.int8]

    @property
    def day(self) -> Integers:
        return self.second // _SECONDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class _World:
    """Customers and terminals on the square: homes and positions of shape (n, 2), and how each customer spends."""

    home: Floats
    mean_amount: Floats
    daily: Floats
    position: Floats
    radius: float

    @classmethod
    def draw(cls, n_customers: int, n_terminals: int, radius: float, rng: np.random.Generator) -> "_World":
        return cls(
            home=rng.uniform(0.0, _SIDE, (n_customers, 2)),
            mean_amount=rng.uniform(5.0, 100.0, n_customers),
            daily=rng.uniform(0.0, 4.0, n_customers),
            position=rng.uniform(0.0, _SIDE, (n_terminals, 2)),
            radius=radius,
        )

    def choose_terminals(self, customer: Integers, rng: np.random.Generator) -> Integers:
        """Chooses a terminal in reach for each row, shape (n,), sorted by customer; -1 where there is none."""
        from scipy.spatial import cKDTree

        terminals = cKDTree(self.position)
        draw = rng.random(len(customer))
        chosen = np.full(len(customer), -1, dtype=np.int64)
        present = np.unique(customer)
        for first in range(0, len(present), _CHUNK):
            some = present[first : first + _CHUNK]
            pairs = cKDTree(self.home[some]).sparse_distance_matrix(terminals, self.radius, output_type="ndarray")
            order = np.lexsort((pairs["j"], pairs["i"]))
            in_reach = pairs["j"][order]
            start = np.searchsorted(pairs["i"][order], np.arange(len(some) + 1))
            low, high = np.searchsorted(customer, (some[0], some[-1] + 1))
            who = np.searchsorted(some, customer[low:high])
            count = start[who + 1] - start[who]
            reached = np.flatnonzero(count)
            pick = start[who] + (draw[low:high] * count).astype(np.int64)
            chosen[low + reached] = in_reach[pick[reached]]
        return chosen


def simulate(
    *,
    n_customers: int = 5000,
    n_terminals: int = 10_000,
    start: str = "2018-04-01",
    days: int = 183,
    radius: float = 5.0,
    seed: int = 0,
    label_delay_days: float = 7.0,
    label_jitter_days: float = 0.0,
    compromised_terminals_per_day: float | None = None,
    leaked_cards_per_day: float | None = None,
    change_day: int | None = None,
) -> Transactions:
    """Simulates card transactions and frauds.

    Customers and terminals lie uniformly on a square of side 100. A customer has a mean amount in [5, 100], with half
    of it as standard deviation, and a mean number of transactions a day in [0, 4]; each transaction is at one of the
    terminals within the radius of home, around noon with a standard deviation of 20,000 s, with a normal amount (where
    negative, uniform up to twice the mean). Frauds, in this order, the later one giving the scenario:

    1. every transaction over 220;
    2. every transaction at a compromised terminal, for 28 days from the day it is drawn;
    3. a random third of the transactions of a leaked card in the 14 days from the day it is drawn, with five times
       the amount.

    With `change_day` the world changes from that day on, at midnight, and what lies before it stays byte for byte as
    it is without a change:

    - leaked cards (3) are tested in bursts, where they made dearer purchases: 2.5 bursts in 14 days on average, each
      of 5 to 10 added transactions with 15 s to some minutes between them (15 s and an exponential of mean 120 s), of
      0.3 to 1.2 times the customer's mean, half in the card's reach and half at any terminal;
    - terminals (2) are compromised for 7 days, so that a label 7 days late says nothing of them, and 7 in 10 of the
      frauds there happen between 1 and 5 in the night;
    - large frauds (1) keep below the limit: 0.15 % of all transactions are frauds of 150 to 219.99, whoever the
      customer is, which is more than twice as many as before; what is over 220 is genuine;
    - honest customers spend 15 % more, and 15 % of their transactions move to the evening (normal, 19:30, 1.5 h).

    Args:
        n_customers: At least 1.
        n_terminals: At least 1.
        start: First day, ISO 8601, UTC.
        days: Number of days, at least 1.
        radius: Reach of a customer, in the square's units, above 0. Who has no terminal in reach pays nowhere.
        seed: The same seed and arguments give the same rows.
        label_delay_days: Age at which labels become known, at least 0.
        label_jitter_days: Labels come up to so much later, uniformly, at least 0.
        compromised_terminals_per_day: At least 0; by default 2 for 10,000 terminals, in proportion. A fraction is the
            probability of one more.
        leaked_cards_per_day: At least 0; by default 3 for 5,000 customers, in proportion.
        change_day: First day of the changed world, counted from 0; None for no change.

    Returns:
        Transactions in order of time, numbered from 0; the labels have a column `scenario`, 0 for genuine.

    Raises:
        InvalidInput: If an argument is out of its range.

    Source: Le Borgne et al., Reproducible Machine Learning for Credit Card Fraud Detection, 2022, chapter 3.2.

    Example:
        >>> data = simulate(n_customers=50, n_terminals=100, days=30, radius=20)
        >>> len(data), int(data.labels["is_fraud"].sum())
        (2746, 9)
    """
    for name, value, least in (
        ("n_customers", n_customers, 1),
        ("n_terminals", n_terminals, 1),
        ("days", days, 1),
        ("seed", seed, 0),
    ):
        if not isinstance(value, int | np.integer) or value < least:
            raise InvalidInput(name, value, f"be a whole number of at least {least}")
    terminals_rate = (
        2 * n_terminals / 10_000 if compromised_terminals_per_day is None else compromised_terminals_per_day
    )
    cards_rate = 3 * n_customers / 5000 if leaked_cards_per_day is None else leaked_cards_per_day
    for name, number in (
        ("label_delay_days", label_delay_days),
        ("label_jitter_days", label_jitter_days),
        ("compromised_terminals_per_day", terminals_rate),
        ("leaked_cards_per_day", cards_rate),
    ):
        if not 0 <= number < math.inf:
            raise InvalidInput(name, number, "be a finite number of at least 0")
    if not 0 < radius < math.inf:
        raise InvalidInput("radius", radius, "be a finite number above 0")
    if change_day is not None and not 0 <= change_day < days:
        raise InvalidInput("change_day", change_day, f"be a day from 0 to {days - 1}, or None")
    midnight = parse_time(start)
    if midnight % DAY:
        raise InvalidInput("start", start, "be a day, such as 2018-04-01")

    # One stream a part, so that a change does not move the draws that have nothing to do with it.
    streams = np.random.SeedSequence(seed).spawn(5)
    world_rng, honest_rng, fraud_rng, change_rng, label_rng = (np.random.default_rng(stream) for stream in streams)
    change = days if change_day is None else change_day
    world = _World.draw(n_customers, n_terminals, radius, world_rng)
    rows = _honest(world, days, honest_rng)
    rows.scenario[(rows.amount > LIMIT) & (rows.day < change)] = _LARGE
    if change < days:
        _change_habits(rows, change, change_rng)
        _large_below_limit(rows, change, change_rng)
    _compromise_terminals(rows, _draws(terminals_rate, n_terminals, days, fraud_rng), change, change_rng)
    leaks = _draws(cards_rate, n_customers, days, fraud_rng)
    _leak_cards(rows, leaks, days, change, fraud_rng)
    if change < days:
        rows = _joined(rows, _bursts(world, leaks, days, change, change_rng))

    order = np.argsort(rows.second, kind="stable")
    delay = round(label_delay_days * DAY)
    late = label_rng.integers(0, round(label_jitter_days * DAY) + 1, len(order)) if label_jitter_days else 0
    assumptions = [
        f"Simulated by the published procedure of the Fraud Detection Handbook, seed {seed}.",
        f"Every label becomes known {label_delay_days:g} days after its transaction"
        + (f", and up to {label_jitter_days:g} days later." if label_jitter_days else "."),
    ]
    if change_day is not None:
        day = isoformat(midnight + change_day * DAY)[:10]
        assumptions.append(f"From {day} on customers spend more and fraud has other ways (the simulated change).")
    return _frames(
        rows,
        order,
        midnight=midnight,
        label_time_offset=delay + late,
        label_delay_us=delay + round(label_jitter_days * DAY),
        assumptions=tuple(assumptions),
    )


def _honest(world: _World, days: int, rng: np.random.Generator) -> _Payments:
    # A Poisson number on each day is a Poisson number in all whose days are uniform.
    customer = np.repeat(np.arange(len(world.daily)), rng.poisson(world.daily * days))
    day = rng.integers(0, days, len(customer))
    time = np.trunc(rng.normal(_SECONDS / 2, 20_000.0, len(customer))).astype(np.int64)
    mean = world.mean_amount[customer]
    amount = rng.normal(mean, mean / 2)
    amount = np.where(amount < 0, rng.uniform(0.0, 2 * mean), amount).round(2)
    terminal = world.choose_terminals(customer, rng)
    kept = (time > 0) & (time < _SECONDS) & (terminal >= 0)
    return _Payments(
        customer=customer[kept],
        terminal=terminal[kept],
        second=day[kept] * _SECONDS + time[kept],
        amount=amount[kept],
        scenario=np.zeros(int(kept.sum()), dtype=np.int8),
    )


def _draws(rate: float, n: int, days: int, rng: np.random.Generator) -> tuple[Integers, Integers]:
    """Draws some of n without replacement on each day; returns days and what was drawn, in the order of the days."""
    counts = np.minimum(math.floor(rate) + (rng.random(days) < rate - math.floor(rate)), n)
    drawn = [rng.choice(n, size=count, replace=False) for count in counts]
    return np.repeat(np.arange(days), counts), np.concatenate(drawn).astype(np.int64)


def _compromise_terminals(
    rows: _Payments, draws: tuple[Integers, Integers], change: int, change_rng: np.random.Generator
) -> None:
    day, terminal = draws
    if not len(day):
        return
    # The latest draw of the row's terminal up to its day: the key orders draws by terminal, then day.
    wide = int(max(day.max(), rows.day.max(initial=0))) + 1
    drawn = np.sort(terminal * wide + day)
    row_day = rows.day
    latest = drawn[np.maximum(np.searchsorted(drawn, rows.terminal * wide + row_day, side="right") - 1, 0)]
    age = row_day - latest % wide
    lasting = np.where(row_day < change, _TERMINAL_DAYS, _CHANGED_TERMINAL_DAYS)
    fraud = (latest // wide == rows.terminal) & (age >= 0) & (age < lasting)
    rows.scenario[fraud] = _TERMINAL
    changed = np.flatnonzero(fraud & (row_day >= change))
    moved = changed[change_rng.random(len(changed)) < _NIGHT_SHARE]
    rows.second[moved] = row_day[moved] * _SECONDS + change_rng.integers(*_NIGHT, len(moved))


def _leak_cards(
    rows: _Payments, draws: tuple[Integers, Integers], days: int, change: int, rng: np.random.Generator
) -> None:
    day, customer = draws
    key = rows.customer * days + rows.day
    order = np.argsort(key, kind="stable")
    low = np.searchsorted(key[order], customer * days + day)
    high = np.searchsorted(key[order], customer * days + np.minimum(day + _CARD_DAYS, days))
    count = high - low
    leak = np.repeat(np.arange(len(day)), count)
    first = np.cumsum(count) - count
    row = order[low[leak] + np.arange(len(leak)) - first[leak]]
    shuffled = np.lexsort((rng.random(len(leak)), leak))
    rank = np.empty(len(leak), dtype=np.int64)
    rank[shuffled] = np.arange(len(leak)) - first[leak]
    # Cards that leak before the change keep to the old way until then.
    taken = row[(rank < count[leak] // 3) & (rows.day[row] < change)]
    np.multiply.at(rows.amount, taken, _FACTOR)
    rows.amount[taken] = rows.amount[taken].round(2)
    rows.scenario[taken] = _CARD


def _change_habits(rows: _Payments, change: int, rng: np.random.Generator) -> None:
    late = np.flatnonzero(rows.day >= change)
    rows.amount[late] = np.round(rows.amount[late] * _AMOUNT_GROWTH, 2)
    moved = late[rng.random(len(late)) < _EVENING_SHARE]
    time = np.clip(rng.normal(*_EVENING, len(moved)), 1, _SECONDS - 1).astype(np.int64)
    rows.second[moved] = rows.day[moved] * _SECONDS + time


def _large_below_limit(rows: _Payments, change: int, rng: np.random.Generator) -> None:
    late = np.flatnonzero(rows.day >= change)
    fraud = late[rng.random(len(late)) < _BELOW_LIMIT_SHARE]
    rows.amount[fraud] = np.round(rng.uniform(*_BELOW_LIMIT, len(fraud)), 2)
    rows.scenario[fraud] = _LARGE


def _bursts(
    world: _World, draws: tuple[Integers, Integers], days: int, change: int, rng: np.random.Generator
) -> _Payments:
    day, customer = draws
    start = np.maximum(day, change)
    end = np.minimum(day + _CARD_DAYS, days)
    alive = start < end
    start, end, customer = start[alive], end[alive], customer[alive]
    bursts = np.repeat(np.arange(len(start)), rng.poisson(_BURSTS * (end - start) / _CARD_DAYS))
    begin = (rng.uniform(start[bursts], end[bursts]) * _SECONDS).astype(np.int64)
    size = rng.integers(*_BURST_SIZE, len(bursts))
    burst = np.repeat(np.arange(len(bursts)), size)
    gap = np.trunc(_BURST_GAP[0] + rng.exponential(_BURST_GAP[1], len(burst))).astype(np.int64)
    passed = np.cumsum(gap)
    passed -= np.repeat((passed - gap)[np.cumsum(size) - size], size) if len(burst) else 0
    card = customer[bursts][burst]
    amount = np.round(world.mean_amount[card] * rng.uniform(*_BURST_AMOUNT, len(card)), 2)
    by_card = np.argsort(card, kind="stable")
    near = np.empty(len(card), dtype=np.int64)
    near[by_card] = world.choose_terminals(card[by_card], rng)
    anywhere = rng.integers(0, len(world.position), len(card))
    second = begin[burst] + passed
    # A card that cannot pay anywhere near its home has no honest history, so nobody holds it.
    kept = (second < days * _SECONDS) & (near >= 0)
    return _Payments(
        customer=card[kept],
        terminal=np.where(rng.random(len(card)) < 0.5, near, anywhere)[kept],
        second=second[kept],
        amount=amount[kept],
        scenario=np.full(int(kept.sum()), _CARD, dtype=np.int8),
    )


def _joined(first: _Payments, second: _Payments) -> _Payments:
    return _Payments(
        customer=np.concatenate([first.customer, second.customer]),
        terminal=np.concatenate([first.terminal, second.terminal]),
        second=np.concatenate([first.second, second.second]),
        amount=np.concatenate([first.amount, second.amount]),
        scenario=np.concatenate([first.scenario, second.scenario]),
    )


def _frames(
    rows: _Payments,
    order: Integers,
    *,
    midnight: int,
    label_time_offset: Integers | int,
    label_delay_us: int,
    assumptions: tuple[str, ...],
) -> Transactions:
    import polars as pl

    event_time = midnight + rows.second[order] * SECOND
    label_time = event_time + label_time_offset
    customer, terminal, amount = rows.customer[order], rows.terminal[order], rows.amount[order]
    scenario = rows.scenario[order]
    digest = hashlib.blake2b(digest_size=16)
    for column in (event_time, label_time, customer, terminal, amount, scenario):
        digest.update(np.ascontiguousarray(column).data)
    moment = pl.Datetime("us", "UTC")
    number = pl.Series("transaction_id", np.arange(len(order))).cast(pl.String)
    transactions = pl.DataFrame(
        [
            number,
            pl.Series("event_time", event_time).cast(moment),
            pl.Series("customer_id", customer).cast(pl.String),
            pl.Series("terminal_id", terminal).cast(pl.String),
            pl.Series("amount", amount),
        ]
    )
    labels = pl.DataFrame(
        [
            number,
            pl.Series("is_fraud", (scenario > 0).astype(np.int8)),
            pl.Series("label_time", label_time).cast(moment),
            pl.Series("scenario", scenario),
        ]
    )
    return Transactions(
        transactions=transactions,
        labels=labels,
        label_delay_us=label_delay_us,
        assumptions=assumptions,
        fingerprint=digest.hexdigest(),
    )
