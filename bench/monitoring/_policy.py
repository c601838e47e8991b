"""A simulated policy: a month of decisions with seasons and bursts, and eight things that can go wrong with it."""

import dataclasses
from typing import Any

import numpy as np

DAYS_BEFORE, DAYS, INJECTED = 28, 30, 10
# Seeds below 1,000 were used while the rules were chosen; what is reported stands on those from 1,000 on.
DEVELOPMENT, REPORTED = 0, 1_000
NAMES = (
    "amount",
    "amount_to_mean",
    "balance",
    "count_1d",
    "count_7d",
    "distance",
    "age_days",
    "channel",
    "merchant",
    "profile_tenure",
    "profile_income",
    "profile_rating",
)
CATEGORICAL = ("channel", "merchant")
COUNTRIES = ("AT", "BE", "CH", "CZ", "DE", "NL")
VIEWS = {"customer_profile": ("profile_tenure", "profile_income", "profile_rating")}
SCENARIOS = (
    "seasonal",
    "slice_only",
    "unit_change",
    "null_spike",
    "category_swap",
    "join_failure",
    "concept_flip",
    "label_delay",
)
MEAN_DELAY = 4.0


@dataclasses.dataclass
class Day:
    """Decisions of one day: X has the shape (n, 12); `label_at` says on which day a positive label comes."""

    X: np.ndarray
    probability: np.ndarray
    country: np.ndarray
    y: np.ndarray
    label_at: np.ndarray


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def make_day(seed: int, day: int, scenario: str | None, *, per_day: int = 4_000) -> Day:
    """Makes one day; days before `INJECTED` are the same in all scenarios, and in the healthy month."""
    rng = np.random.default_rng((seed, 7, day + DAYS_BEFORE))
    active = scenario if day >= INJECTED else None
    weekly = (1.0, 1.03, 1.06, 1.1, 1.2, 0.85, 0.75)[day % 7]
    ramp = min(1.0, max(0.0, (day - INJECTED + 1) / 10)) if active == "seasonal" else 0.0
    n = int(rng.poisson(per_day * weekly * rng.gamma(400, 1 / 400) * (1 + 0.3 * ramp)))
    country = rng.choice(len(COUNTRIES), n, p=(0.3, 0.12, 0.12, 0.08, 0.26, 0.12))
    weekend = 1.0 if day % 7 >= 5 else 0.0
    amount = rng.lognormal(3.4 + 0.06 * weekend + rng.normal(0, 0.01), 0.9, n) * (1 + 0.4 * ramp)
    if active == "slice_only":
        amount = np.where(country == 2, 2.5 * amount, amount)
    usual = rng.lognormal(3.5, 0.4, n)
    balance = rng.lognormal(6.5, 1.1, n)
    count_1d, count_7d = rng.poisson(1.5 + 0.2 * weekend, n) * 1.0, rng.poisson(8.0, n) * 1.0
    distance = np.where(rng.random(n) < 0.02, np.nan, rng.gamma(1.2, 12.0, n))
    age = rng.gamma(2.0, 300.0, n)
    channel = rng.choice(4, n, p=(0.46, 0.30, 0.16, 0.08)) * 1.0
    merchant = rng.choice(8, n, p=(0.27, 0.2, 0.16, 0.12, 0.09, 0.07, 0.05, 0.04)) * 1.0
    lost = rng.random(n) < 0.01
    tenure, income, rating = rng.gamma(3.0, 2.0, n), rng.lognormal(10.3, 0.5, n), rng.normal(600, 60, n)
    burst = rng.gamma(60, 1 / 60)
    base = -5.3 + 0.35 * (np.log(amount) - 3.4) + 0.5 * (count_1d - 1.5)
    signal = 1.6 * (merchant == 6) + 0.9 * (channel == 2) - 0.5 * (channel == 0)
    p = _sigmoid(base + signal)
    truth = p
    if active == "concept_flip":
        # What was risky is now safe and the other way about; the level stays about where it was.
        truth = _sigmoid(base + 0.35 - 0.9 * signal)
    y = rng.random(n) < np.clip(truth * burst, 0, 1)
    delay = rng.exponential(MEAN_DELAY * (3.0 if active == "label_delay" else 1.0), n)
    profile = np.column_stack([tenure, income, rating])
    profile[lost] = np.nan
    if active == "join_failure":
        profile[rng.random(n) < 0.2] = np.nan
    if active == "unit_change":
        balance = balance * 100
    if active == "null_spike":
        distance = np.where(rng.random(n) < 0.12, np.nan, distance)
    if active == "category_swap":
        channel = np.array([1.0, 0.0, 2.0, 3.0])[channel.astype(int)]
    X = np.column_stack(
        [amount, amount / usual, balance, count_1d, count_7d, distance, age, channel, merchant, profile]
    )
    return Day(X=X, probability=p, country=country, y=y, label_at=day + delay)


def features_only(day: Day) -> dict[str, Any]:
    """Returns the columns of a day by name, the probability last."""
    found = {name: day.X[:, at] for at, name in enumerate(NAMES)}
    return {**found, "probability": day.probability}
