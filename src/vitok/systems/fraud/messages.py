"""What travels over HTTP and into the log: requests, answers, outcomes, and the notes that tie them together."""

import datetime as dt
import hashlib

import msgspec

from vitok import decisions
from vitok.features import FeatureSet
from vitok.systems.fraud.features import FEATURES

SYSTEM = "fraud"
OUTCOME_KIND = "fraud"
CHALLENGER = "fraud-online"
"""The model that learns online; its versions are named by their contents, such as `"fraud-online/3fa90c1d22b7"`."""
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_NO_DECISION = bytes(16)


class Transaction(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request for a decision."""

    transaction_id: str | int
    event_time: dt.datetime
    customer_id: str | int
    terminal_id: str | int
    amount: float


class OutcomeItem(msgspec.Struct, forbid_unknown_fields=True):
    """One outcome in the body of `POST /v1/outcomes`."""

    request_id: str | int
    value: float
    event_time: dt.datetime
    kind: str = OUTCOME_KIND
    source: str = ""
    supersedes: bool = False


class OutcomeBatch(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/outcomes`."""

    outcomes: list[OutcomeItem]


class Answer(msgspec.Struct):
    """The body of an answer to a request for a decision."""

    decision_id: str
    transaction_id: str
    action: str
    probability: float | None
    propensity: float
    model_version: str
    route: str
    feature_status: str


def log_schema(features: FeatureSet = FEATURES) -> decisions.LogSchema:
    """Returns the columns of the fraud system's decision log."""
    return decisions.LogSchema(
        system=SYSTEM,
        entities=("customer_id", "terminal_id"),
        request=(("amount", "float64"),),
        features=features.names,
    )


def microseconds(moment: dt.datetime) -> int:
    """Converts a moment to microseconds since 1970; without an offset it is taken as UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return (moment - _EPOCH) // _MICROSECOND


def fingerprint(moment: int, customer: str, terminal: str, amount: float) -> bytes:
    """Returns 8 bytes that tell one transaction from another of the same id."""
    text = f"{moment}|{customer}|{terminal}|{amount!r}"
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def note(decision_id: bytes, moment: int, customer: str, terminal: str, amount: float) -> bytes:
    """Returns what is noted with a transaction: decision id (16 bytes), fingerprint (8 bytes), terminal."""
    return decision_id + fingerprint(moment, customer, terminal, amount) + terminal.encode()


def history_note(moment: int, customer: str, terminal: str, amount: float) -> bytes:
    """Returns what is noted with a transaction that was loaded, not decided."""
    return note(_NO_DECISION, moment, customer, terminal, amount)
