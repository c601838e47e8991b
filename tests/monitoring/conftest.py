"""Simulated card-fraud traffic: the same customers come again, their window means hardly move from row to row."""

import dataclasses
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from vitok.clock import DAY, HOUR
from vitok.monitoring import ReferenceProfile

WINDOWS = (1, 7, 30)
NAMES = (
    "amount",
    "amount_to_mean",
    "is_weekend",
    *(f"customer_mean_{days}d" for days in WINDOWS),
    *(f"customer_count_{days}d" for days in WINDOWS),
    *(f"customer_sum_{days}d" for days in WINDOWS),
    *(f"terminal_mean_{days}d" for days in WINDOWS),
    *(f"terminal_count_{days}d" for days in WINDOWS),
    *(f"terminal_risk_{days}d" for days in WINDOWS),
    *(f"distance_{number}" for number in range(14)),
)


@dataclasses.dataclass
class Traffic:
    """A world of customers and terminals with `per_day` payments a day; amounts may grow from a day on."""

    seed: int = 7
    per_day: int = 4_000
    n_customers: int = 2_500
    shift: float = 1.0
    shift_day: int = 10**9

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.usual = self.rng.uniform(5, 100, self.n_customers)
        self.rate = self.rng.gamma(2.0, 0.5, self.n_customers)
        self.terminal_usual = self.rng.lognormal(3.9, 0.15, 2 * self.n_customers)
        self.risk = np.where(self.rng.random(2 * self.n_customers) < 0.01, self.rng.beta(4, 4, 2 * self.n_customers), 0)
        self.place = self.rng.normal(size=(14, self.n_customers))

    def day(self, day: int, *, version: str = "fraud/1") -> pl.DataFrame:
        """Returns the decisions of one day as the log has them, with the truth in `label`."""
        rng = np.random.default_rng((self.seed, day))
        weekly = (1.0, 1.0, 1.02, 1.03, 1.08, 1.12, 0.9)[day % 7]
        n = int(rng.poisson(self.per_day * weekly))
        who = rng.choice(self.n_customers, n, p=self.rate / self.rate.sum())
        where = rng.integers(0, len(self.terminal_usual), n)
        grown = self.shift if day >= self.shift_day else 1.0
        amount = np.abs(rng.normal(self.usual[who], self.usual[who] / 2)) * grown + 0.01
        columns = {"amount": amount, "is_weekend": np.full(n, float((day + 3) % 7 >= 5))}
        for days in WINDOWS:
            # Noise of a whole day, shared by all rows of an entity: rows are far from independent.
            seen = min(max(day + 1 - self.shift_day, 0), days) / days
            growth = 1 + (self.shift - 1) * seen
            noise = rng.normal(1, 0.5 / np.sqrt(1 + 1.6 * days), self.n_customers)
            mean = self.usual * np.abs(noise) * growth
            count = rng.poisson(self.rate * 1.6 * days * weekly ** (1 / days))
            columns[f"customer_mean_{days}d"] = np.where(count > 0, mean, np.nan)[who]
            columns[f"customer_count_{days}d"] = count[who].astype(np.float64)
            columns[f"customer_sum_{days}d"] = (count * mean)[who]
            at = rng.normal(1, 0.3 / np.sqrt(1 + days), len(self.terminal_usual))
            columns[f"terminal_mean_{days}d"] = (self.terminal_usual * at * growth)[where]
            columns[f"terminal_count_{days}d"] = rng.poisson(0.8 * days, len(where)).astype(np.float64)
            columns[f"terminal_risk_{days}d"] = np.round(self.risk, 1 if days == 1 else 2)[where]
        columns["amount_to_mean"] = amount / columns["customer_mean_30d"]
        noises = rng.normal(0, 0.3, (14, n))
        for number in range(14):
            columns[f"distance_{number}"] = self.place[number][who] + noises[number]
        burst = rng.gamma(30, 1 / 30)
        unusual = np.clip(np.nan_to_num(columns["amount_to_mean"], nan=1.0), 0.2, 4.0)
        probability = np.clip(0.0015 * unusual + 0.9 * columns["terminal_risk_7d"], 0, 1)
        label = rng.random(n) < np.clip(probability * burst, 0, 1)
        time = day * DAY + np.sort(rng.integers(0, DAY, n))
        return pl.DataFrame(
            {
                "request_id": np.arange(n),
                "event_time": pl.Series(time).cast(pl.Datetime("us", "UTC")),
                "customer_id": who.astype(str),
                "amount": amount,
                "model_version": [version] * n,
                "route": ["champion"] * n,
                "feature_status": ["fresh"] * n,
                "probability": probability,
                "action": np.where(probability > 0.3, "block", np.where(probability > 0.05, "review", "allow")),
                "latency_us": rng.integers(300, 3_000, n),
                "label": label.astype(np.float64),
                **{f"f_{name}": columns[name] for name in NAMES},
            }
        )

    def profile(self, first: int, last: int) -> ReferenceProfile:
        """Returns the profile of days `[first, last)`, with what the model achieved then."""
        from vitok.monitoring import performance
        from vitok.policies import Costs

        rows = pl.concat([self.day(day) for day in range(first, last)])
        found = performance(rows, costs=Costs())
        return ReferenceProfile.fit(
            NAMES,
            rows.select([f"f_{name}" for name in NAMES]).to_numpy(),
            rows["probability"].to_numpy(),
            start=first * DAY,
            end=last * DAY,
            event_time=rows["event_time"].to_physical().to_numpy(),
            baseline={estimate.name: estimate.to_dict() for estimate in found.estimates},
            ignored=("is_weekend",),
        )


@pytest.fixture
def traffic() -> Callable[..., Traffic]:
    """Makes simulated traffic; see `Traffic`."""
    return Traffic


@pytest.fixture
def decisions() -> Callable[..., pl.DataFrame]:
    """Makes a small frame of decisions with one feature, `amount`, spread over `hours`."""

    def make(
        n: int, *, seed: int = 0, hours: int = 1, version: str = "fraud/1", route: str = "champion"
    ) -> pl.DataFrame:
        rng = np.random.default_rng(seed)
        return pl.DataFrame(
            {
                "event_time": pl.Series(np.sort(rng.integers(0, hours * HOUR, n))).cast(pl.Datetime("us", "UTC")),
                "model_version": [version] * n,
                "route": [route] * n,
                "feature_status": rng.choice(["fresh", "stale"], n),
                "action": rng.choice(["allow", "review", "block"], n),
                "probability": rng.beta(1, 50, n),
                "latency_us": rng.integers(100, 5_000, n),
                "f_amount": np.where(rng.random(n) < 0.1, np.nan, rng.lognormal(3, 0.8, n)),
            },
            schema_overrides=dict.fromkeys(("model_version", "route", "feature_status", "action"), pl.String),
        )

    return make


@pytest.fixture
def profile() -> ReferenceProfile:
    """A profile with one feature, `amount`."""
    rng = np.random.default_rng(42)
    X = np.where(rng.random((5_000, 1)) < 0.1, np.nan, rng.lognormal(3, 0.8, (5_000, 1)))
    return ReferenceProfile.fit(["amount"], X, rng.beta(1, 50, 5_000), start=0, end=DAY)
