"""What the fraud system knows of a transaction: its features, declared once."""

import numpy as np

from vitok.clock import DAY, HOUR
from vitok.engines import KeyValueStore
from vitok.features import (
    Count,
    Distinct,
    Entity,
    FeatureSet,
    Mean,
    OnDemand,
    OnlineFeatures,
    Source,
    Sum,
    View,
)

CUSTOMER = Entity("customer", "customer_id")
TERMINAL = Entity("terminal", "terminal_id")
TRANSACTIONS = Source("transactions", "transaction_id")
# A label becomes an event when it becomes known, so a window over labels can never look ahead.
LABELS = Source("labels", "transaction_id", "label_time")

_SHORT_AND_LONG = ("15m", "1h", "6h", "1d", "7d", "30d")

CUSTOMER_VIEW = View(
    name="customer",
    entity=CUSTOMER,
    source=TRANSACTIONS,
    aggregations=(
        Count(_SHORT_AND_LONG),
        Sum("amount", _SHORT_AND_LONG, name="sum"),
        Mean("amount", ("1d", "7d", "30d"), name="mean"),
    ),
    owner="fraud team",
    description="How often and how much the customer pays.",
    fresh_within="1h",
)
TERMINAL_VIEW = View(
    name="terminal",
    entity=TERMINAL,
    source=TRANSACTIONS,
    aggregations=(
        Count(("1h", "1d", "7d", "30d")),
        Distinct("customer_id", ("1d", "7d", "30d"), name="customers"),
        Mean("amount", ("1d", "7d"), name="mean"),
    ),
    owner="fraud team",
    description="How busy the terminal is, and with how many different customers.",
    fresh_within="1h",
)
RISK_VIEW = View(
    name="terminal_labels",
    entity=TERMINAL,
    source=LABELS,
    aggregations=(Count(("1d", "7d", "30d")), Mean("is_fraud", ("1d", "7d", "30d"), name="risk")),
    owner="fraud team",
    description="Share of frauds among the terminal's transactions whose labels became known.",
    fresh_within="2d",
)


def is_weekend(event_time: np.ndarray) -> np.ndarray:
    """Saturday or Sunday, UTC; 1970-01-01 was a Thursday."""
    return (event_time // DAY + 3) % 7 >= 5


def is_night(event_time: np.ndarray) -> np.ndarray:
    """From midnight until 06:59 UTC, as the Handbook has it."""
    return event_time % DAY // HOUR <= 6


def amount_to_mean(amount: np.ndarray, customer_mean_30d: np.ndarray) -> np.ndarray:
    """The amount as a multiple of what the customer usually pays; NaN for a new customer."""
    return amount / customer_mean_30d


def recent_share(customer_count_6h: np.ndarray, customer_count_30d: np.ndarray) -> np.ndarray:
    """Which share of a month's transactions came in the last six hours; NaN for a new customer."""
    return customer_count_6h / customer_count_30d


FEATURES = FeatureSet(
    request=("amount",),
    views=(CUSTOMER_VIEW, TERMINAL_VIEW, RISK_VIEW),
    on_demand=(
        OnDemand("is_weekend", is_weekend),
        OnDemand("is_night", is_night),
        OnDemand("amount_to_mean", amount_to_mean),
        OnDemand("recent_share", recent_share),
    ),
)
# A label may come this long after its transaction and still find it.
KEEP_EVENTS = FEATURES.longest + 15 * DAY


def online_features(store: KeyValueStore) -> OnlineFeatures:
    """Opens the online side of the features."""
    return OnlineFeatures(FEATURES, store, lateness="6h", keep_events=KEEP_EVENTS)


# The calendar moves every day: no drift is looked for in it.
CALENDAR = ("is_weekend", "is_night")

_DAYS = ("1d", "7d", "30d")
# The features of the published protocol, for comparison: windows to the microsecond, the payment itself included.
HANDBOOK = FeatureSet(
    request=("amount",),
    views=(
        View(
            name="customer",
            entity=CUSTOMER,
            source=TRANSACTIONS,
            aggregations=(Count(_DAYS), Mean("amount", _DAYS, name="mean")),
            include_current=True,
            exact=True,
        ),
        View(
            name="terminal",
            entity=TERMINAL,
            source=LABELS,
            aggregations=(Count(_DAYS), Mean("is_fraud", _DAYS, name="risk")),
            exact=True,
        ),
    ),
    on_demand=(OnDemand("is_weekend", is_weekend), OnDemand("is_night", is_night)),
)
