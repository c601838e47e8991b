"""Feature sets and data that `table` and Spark must agree on; read by the tests and, on Spark's side, by the runner.

Times sit on a coarse grid, so that events share instants with each other, with questions and with the hops' edges.
"""

from typing import TYPE_CHECKING

import numpy as np

from vitok.clock import DAY, HOUR, MINUTE
from vitok.features import (
    Buckets,
    Categories,
    Count,
    Distinct,
    Entity,
    FeatureSet,
    First,
    Last,
    Latest,
    Max,
    Mean,
    Min,
    OnDemand,
    Rate,
    Ratio,
    Recent,
    Source,
    Std,
    Sum,
    TopK,
    View,
)

if TYPE_CHECKING:
    import polars as pl

# A whole number of days after 1970, so that every hop has an edge there.
START = 20_000 * DAY
CHANNELS = Categories(("web", "shop", "phone"))

CUSTOMER = Entity("customer", "customer_id")
TERMINAL = Entity("terminal", "terminal_id")
BOTH = Entity("customer at terminal", ("customer_id", "terminal_id"))

PAYMENTS = Source(
    "payments",
    "payment_id",
    ingest_time="ingest_time",
    encode={"channel": CHANNELS, "city": Buckets(7)},
)
LOADED = Source("loaded", "payment_id", encode={"channel": CHANNELS})
PROFILES = Source("profiles", ingest_time="ingest_time", deleted="is_deleted", encode={"channel": CHANNELS})
STATES = Source("states", "payment_id", ingest_time="ingest_time")


def every_kind(over: tuple[str, ...]) -> tuple[object, ...]:
    web = (("channel", "==", "web"),)
    return (
        Count(over),
        Count(over, name="web", where=web),
        Sum("amount", over),
        Sum("pieces", over, where=(("amount", ">", 0.0), ("channel", "in", ("web", "shop")))),
        Mean("amount", over),
        Mean("is_new", over),
        Min("amount", over),
        Max("amount", over, where=(("city", "!=", "Riga"),)),
        Std("amount", over),
        First("amount", over),
        Last("amount", over),
        Last("channel", over),
        Distinct("city_name", over),
        Distinct("city", over),
        Distinct("pieces", over, where=(("is_new", "==", True),)),
        TopK("channel", over, k=3),
        TopK("pieces", over, k=2, where=(("channel", "not in", ("phone",)),)),
        Recent("amount", ("6h",), n=4),
        Ratio(Sum("amount", over, where=web), Sum("amount", over), name="web_share"),
        Ratio(Count(over, where=web), Count(over), name="web_count_share"),
        Rate(over, per="1h"),
        Rate(over, per="1d", name="web_rate", where=web),
    )


def _is_large(amount: np.ndarray, customer_amount_mean_6h: np.ndarray) -> np.ndarray:
    return amount > 2.0 * customer_amount_mean_6h


def _hour(event_time: np.ndarray) -> np.ndarray:
    return event_time // HOUR % 24


def _of_all(amount: np.ndarray, hour: np.ndarray, terminal_count_1h: np.ndarray) -> np.ndarray:
    return amount / terminal_count_1h + hour


CASES: dict[str, FeatureSet] = {
    "every kind, by ingest time": FeatureSet(
        views=(View(name="customer", entity=CUSTOMER, source=PAYMENTS, aggregations=every_kind(("1h", "6h", "3d"))),)
    ),
    "every kind, long windows, a key of two columns": FeatureSet(
        views=(View(name="pair", entity=BOTH, source=PAYMENTS, aggregations=every_kind(("2d", "13d"))),)
    ),
    "a stated lag, no ingest time": FeatureSet(
        views=(
            View(name="soon", entity=CUSTOMER, source=LOADED, lag="10m", aggregations=every_kind(("1h", "12h"))),
            View(name="at_once", entity=TERMINAL, source=LOADED, aggregations=(Count(("1h",)), Last("amount", "1h"))),
        )
    ),
    "a lag instead of the ingest time": FeatureSet(
        views=(View(name="customer", entity=CUSTOMER, source=PAYMENTS, lag="0s", aggregations=every_kind(("6h",))),)
    ),
    "exact windows": FeatureSet(
        views=(
            View(
                name="customer",
                entity=CUSTOMER,
                source=PAYMENTS,
                exact=True,
                aggregations=(Count(("1h", "90s")), Sum("amount", ("1h",)), Distinct("city", ("7h",))),
            ),
        )
    ),
    "newest rows": FeatureSet(
        views=(
            Latest(name="profile", entity=CUSTOMER, source=PROFILES, columns=("amount", "channel", "pieces")),
            Latest(name="fresh", entity=CUSTOMER, source=PROFILES, columns=("amount", "is_new"), ttl="6h"),
            Latest(name="assumed", entity=CUSTOMER, source=PROFILES, columns=("amount",), ttl="1d", lag="30m"),
            Latest(name="by_id", entity=BOTH, source=STATES, columns={"pieces": "int64", "amount": "float32"}),
        )
    ),
    "the request, functions, and a choice of columns": FeatureSet(
        request=("amount", "is_new"),
        views=(
            View(name="customer", entity=CUSTOMER, source=PAYMENTS, aggregations=(Mean("amount", ("6h",)),)),
            View(
                name="terminal",
                entity=TERMINAL,
                source=PAYMENTS,
                include_current=True,
                aggregations=(Count(("1h", "1d")), Sum("amount", ("1h",)), Mean("amount", ("1h", "1d"))),
            ),
            Latest(name="profile", entity=CUSTOMER, source=PROFILES, columns=("pieces",)),
        ),
        on_demand=(OnDemand("is_large", _is_large), OnDemand("hour", _hour), OnDemand("of_all", _of_all)),
        select=(
            "of_all",
            "customer_amount_mean_6h",
            "amount",
            "is_large",
            "profile_pieces",
            "terminal_amount_mean_1d",
            "terminal_count_1h",
            "terminal_amount_sum_1h",
            "is_new",
        ),
    ),
    "no events": FeatureSet(
        views=(
            View(name="customer", entity=CUSTOMER, source=PAYMENTS, aggregations=every_kind(("1h",))),
            Latest(name="profile", entity=CUSTOMER, source=PROFILES, columns=("amount",)),
        )
    ),
}


TEXTS = ["", "a", "Århus", "12345678", "1234567", "123456789", "0123456789abcdef", "payment-" * 9, "北京" * 40]


def data(case: str) -> "tuple[pl.DataFrame, dict[str, pl.DataFrame]]":
    """Returns the spine and the sources of a case; the same ones every time."""
    import polars as pl

    rng = np.random.default_rng(sorted(CASES).index(case))
    begin = -2 * DAY if case == "a stated lag, no ingest time" else START
    n = 0 if case == "no events" else 600
    events = _events(rng, begin, n)
    spine = _events(rng, begin, 250, after=6 * HOUR).drop("payment_id", "ingest_time", "is_deleted")
    spine = pl.concat([spine, spine.head(20)]).with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    nobody, unnamed = pl.col("row") % 50 == 7, pl.col("row") % 50 == 8
    spine = spine.with_columns(
        customer_id=pl.when(nobody).then(None).otherwise("customer_id"),
        terminal_id=pl.when(unnamed).then(pl.lit("")).otherwise("terminal_id"),
    )
    # An event that comes twice, and once more under the same id with other contents, which must change nothing.
    again = events.sample(min(40, n), seed=1).with_columns(
        ingest_time=pl.col("ingest_time") + pl.duration(hours=1), amount=pl.lit(1e6)
    )
    streamed = pl.concat([events, events.sample(min(40, n), seed=2), again]).sort("ingest_time")
    profiles = events.unique(["customer_id", "event_time", "ingest_time"], maintain_order=True).drop("payment_id")
    sources = {
        "payments": streamed,
        "loaded": pl.concat([events, events.head(50)]).drop("ingest_time"),
        "profiles": profiles.sample(fraction=1.0, shuffle=True, seed=3),
        "states": events.unique(["customer_id", "terminal_id", "event_time", "ingest_time"], maintain_order=True),
    }
    needed = {source.name for source in CASES[case].sources}
    return spine, {name: frame for name, frame in sources.items() if name in needed}


def _events(rng: np.random.Generator, begin: int, n: int, *, after: int = 0) -> "pl.DataFrame":
    import polars as pl

    grid = rng.choice([1, 1_000_003, 5 * MINUTE, HOUR], n)
    time = begin + rng.integers(0, 4 * DAY + after, n) // grid * grid + rng.choice([0, 0, 0, -1, 1], n)
    late = np.where(rng.random(n) < 0.2, rng.integers(0, 12 * HOUR, n) // (5 * MINUTE) * 5 * MINUTE, 0)
    amount = np.round(rng.normal(20, 30, n), 2)
    return pl.DataFrame(
        {
            "payment_id": [f"p{i}" for i in rng.permutation(n)],
            "event_time": time,
            "ingest_time": time + late,
            "customer_id": rng.integers(0, 4, n),
            "terminal_id": [f"t{i}" for i in rng.integers(0, 3, n)],
            "amount": [None if rng.random() < 0.05 else float(value) for value in amount],
            "pieces": rng.integers(-2, 5, n),
            "is_new": rng.random(n) < 0.3,
            "channel": [None if i == 4 else ("web", "shop", "phone", "fax")[i] for i in rng.integers(0, 5, n)],
            "city": [("Riga", "Århus", "", "Tartu's", "北京")[i] for i in rng.integers(0, 5, n)],
            "city_name": [("a", "b", "c", None)[i] for i in rng.integers(0, 4, n)],
            "is_deleted": rng.random(n) < 0.1,
        },
        schema_overrides=dict.fromkeys(("payment_id", "terminal_id", "channel", "city", "city_name"), pl.String)
        | {"amount": pl.Float64},
    ).with_columns(pl.col("event_time", "ingest_time").cast(pl.Datetime("us", "UTC")))
