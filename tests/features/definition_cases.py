"""Definitions of every kind, for the tests of what is written down about them."""

import numpy as np

from vitok.features import (
    Buckets,
    Categories,
    Count,
    Distinct,
    Embedding,
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

CARD = Entity("card", "card_id")
PAIR = Entity("card at shop", ("card_id", "shop_id"))
PAYMENTS = Source(
    "payments",
    "payment_id",
    ingest_time="known_at",
    encode={"channel": Categories(("web", "shop")), "merchant": Buckets(100)},
    location="s3://lake/payments",
    owner="payments team",
    description="Card payments.",
)
ACCOUNTS = Source("accounts", ingest_time="loaded_at", deleted="is_closed")

EVERYTHING = View(
    name="card",
    entity=CARD,
    source=PAYMENTS,
    aggregations=(
        Count(("1h", "1d"), where=(("channel", "in", ("web", "shop")), ("amount", ">", 5))),
        Sum("amount", ("1h", "7d"), name="spent"),
        Mean("amount", ("7d",)),
        Min("amount", ("7d",)),
        Max("amount", ("7d",)),
        Std("amount", ("7d",)),
        First("amount", ("30d",)),
        Last("amount", ("30d",)),
        Distinct("shop_id", ("1d",), name="shops"),
        TopK("channel", ("1d", "7d"), k=2),
        Recent("merchant", ("30d",), n=3),
        Ratio(Count(("1d",), where=(("channel", "==", "web"),), name="web"), Count(("1d",)), name="web_share"),
        Rate(("1h",), per="10m"),
    ),
    lag="10m",
    owner="risk team",
    description="How a card is used.",
    tags=("velocity", "pii"),
    fresh_within="15m",
    refresh="5m",
)
ACCOUNT = Latest(
    name="account",
    entity=CARD,
    source=ACCOUNTS,
    columns={"credit_limit": "float32", "is_vip": "bool"},
    ttl="90d",
    owner="accounts team",
)
PLACE = Embedding(name="place", entity=PAIR, index="shops", index_version="7", dimension=3)


def ratio(amount: np.ndarray, card_amount_mean_7d: np.ndarray) -> np.ndarray:
    """The amount as a multiple of the usual one."""
    return amount / card_amount_mean_7d


def is_new(ratio: np.ndarray, event_time: np.ndarray) -> np.ndarray:
    """A new card at night."""
    return np.isnan(ratio) & (event_time % 86_400_000_000 < 21_600_000_000)


FEATURES = FeatureSet(
    request=("amount",),
    views=(EVERYTHING, ACCOUNT, PLACE),
    on_demand=(OnDemand("ratio", ratio), OnDemand("is_new", is_new)),
)


def small(*windows: str, column: str = "amount", owner: str = "", source: Source = PAYMENTS) -> View:
    """A view of sums of one column."""
    sums = (Sum(column, windows or ("1h",), name="spent"),)
    return View(name="card", entity=CARD, source=source, aggregations=sums, owner=owner)
