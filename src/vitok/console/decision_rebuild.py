"""A decision of the fraud system computed again: what it saw, beside what its logs and its history say it must have."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitok import contracts, decisions
from vitok.clock import isoformat
from vitok.console import stores
from vitok.decision import Decision
from vitok.errors import Conflict, NotFound
from vitok.features import FeatureSet, compare
from vitok.features.corrections import with_corrections
from vitok.features.rebuild import rebuild
from vitok.systems.fraud.features import FEATURES, LABELS, TRANSACTIONS
from vitok.systems.fraud.intake import CONTRACT
from vitok.systems.fraud.label_events import label_events
from vitok.systems.fraud.messages import SYSTEM

if TYPE_CHECKING:
    import polars as pl

    from vitok.systems.fraud.transactions import Transactions

SAME, DIFFERS, UNKNOWN = "same", "differs", "needs history"
_PAID = ("transaction_id", "event_time", "customer_id", "terminal_id", "amount")
_KNOWN = ("transaction_id", "label_time", "is_fraud", "terminal_id")
_TOLD = ("transaction_id", "label_time", "known_time", "is_fraud", "source", "supersedes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RebuiltFeature:
    """One feature of a decision, as it was seen and as it was computed again.

    Attributes:
        name: Its name.
        seen: What the decision saw; NaN for none.
        rebuilt: What comes out now; NaN for none.
        state: `"same"`; `"differs"`; `"needs history"`, where it differs and no history was given, though it looks
            back before the log begins or at labels of transactions from before.
    """

    name: str
    seen: float
    rebuilt: float
    state: str

    @property
    def difference(self) -> float:
        """Rebuilt less seen; 0 where both have no value, NaN where one has none."""
        return 0.0 if np.isnan(self.seen) and np.isnan(self.rebuilt) else self.rebuilt - self.seen


@dataclasses.dataclass(frozen=True, kw_only=True)
class RebuiltDecision:
    """A decision and its vector, computed again.

    Attributes:
        decision: As it stands in the log.
        log_begins: Event time of the earliest decision in the log, in microseconds.
        reaches_back: How far back the features look, as a moment in microseconds.
        n_transactions: Transactions before it that were known when it was made and may matter.
        n_labels: Labels that were known then.
        n_history: Of both, those that came from the file of the history.
        features: In the model's order.
    """

    decision: Decision
    log_begins: int
    reaches_back: int
    n_transactions: int
    n_labels: int
    n_history: int
    features: tuple[RebuiltFeature, ...]

    def of_state(self, state: str) -> tuple[RebuiltFeature, ...]:
        """Returns the features of one state."""
        return tuple(item for item in self.features if item.state == state)

    def __str__(self) -> str:
        """Returns the comparison as a table."""
        made = self.decision
        width = max(len("feature"), *(len(item.name) for item in self.features))
        lines = [
            f"{made.decision_id}: request {made.request_id} of {isoformat(made.event_time)}, {made.model_version}, "
            f"decided at {isoformat(made.ingest_time)}",
            f"rebuilt from {self.n_transactions:,} transactions and {self.n_labels:,} labels known then, "
            f"{self.n_history:,} of them from the file",
            f"{'feature':<{width}}  {'seen':>14}  {'rebuilt':>14}  {'difference':>12}",
        ]
        for item in self.features:
            values = f"{_number(item.seen):>14}  {_number(item.rebuilt):>14}  {_number(item.difference):>12}"
            lines.append(f"{item.name:<{width}}  {values}  {item.state if item.state != SAME else ''}".rstrip())
        n_same, n_differing = len(self.of_state(SAME)), len(self.of_state(DIFFERS))
        told = f"{n_same} of {len(self.features)} features are the same, {n_differing} differ"
        if made.feature_status == "late":
            told += "; it came later than the lateness allows, and saw merged windows"
        lines.append(told)
        unknown = self.of_state(UNKNOWN)
        if unknown:
            lines.append(
                f"{len(unknown)} need what came before the log begins, at {isoformat(self.log_begins)} (features look "
                f"back to {isoformat(self.reaches_back)}): what was loaded then is not in this home. Give its file "
                "with --transactions"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns it ready for JSON."""
        return {
            "decision_id": self.decision.decision_id,
            "request_id": self.decision.request_id,
            "event_time": isoformat(self.decision.event_time),
            "decided_at": isoformat(self.decision.ingest_time),
            "model_version": self.decision.model_version,
            "definitions": FEATURES.version,
            "log_begins": isoformat(self.log_begins),
            "n_transactions": self.n_transactions,
            "n_labels": self.n_labels,
            "n_history": self.n_history,
            "features": [
                {
                    "name": item.name,
                    "seen": None if np.isnan(item.seen) else item.seen,
                    "rebuilt": None if np.isnan(item.rebuilt) else item.rebuilt,
                    "state": item.state,
                }
                for item in self.features
            ],
        }


def rebuild_decision(home: Path, decision_id: str, *, history: "Transactions | None" = None) -> RebuiltDecision:
    """Finds a decision in the log of a home and computes its vector again.

    Known are the decisions that stand before it in the log, the outcomes that had come in when it was made, and of the
    history what happened before the log begins.

    Args:
        home: The home of the fraud system.
        decision_id: UUID as text.
        history: The data that the service was started with, if any.

    Raises:
        NotFound: If there is no log or no such decision.
        Conflict: If its model was made with other definitions than those that are declared now.
        InvalidInput: If the id is no UUID.
    """
    logs = stores.logs(home)
    if logs is None:
        raise NotFound("decision log in", str(home))
    found = decisions.find(logs / "decisions", decision_id=decision_id)
    if found is None:
        raise NotFound("decision", decision_id, ["the ids in its log, as the console and each answer show them"])
    _check_definitions(home, found)
    begins = decisions.read(logs / "decisions", columns=["event_time", "ingest_time"])
    log_begins, started = _least(begins, "event_time"), _least(begins, "ingest_time")
    outcomes = _outcomes(logs / "outcomes")
    if len(outcomes):
        started = min(started, _least(outcomes, "known_time"))
    reaches_back = found.event_time - FEATURES.longest
    paid = _before(logs / "decisions", found)
    labels = outcomes.filter(_physical("known_time") <= found.ingest_time)
    terminals = decisions.read(logs / "decisions", columns=["request_id", "terminal_id"])
    sources, corrections, n_history, n_homeless = _sources(paid, labels, terminals, history, started)
    features, given = with_corrections(FEATURES, sources, {LABELS.name: corrections})
    keys = {name: found.entities[name] for name in FEATURES.entity_keys}
    rebuilt = rebuild(
        features,
        given,
        keys=keys,
        time=found.event_time,
        known_at=max(found.ingest_time, found.event_time),  # what was not known then is left out already
        request={name: found.request[name] for name in FEATURES.request},  # type: ignore[misc]  # all are numbers
    )
    seen = np.array([found.features[name] for name in FEATURES.names], np.float64)
    differing = compare(FEATURES, seen[None], rebuilt[None]).by_feature
    reach, of_labels = spans(FEATURES), reading(FEATURES, LABELS.name)
    compared = []
    for name, before, after in zip(FEATURES.names, seen.tolist(), rebuilt.tolist(), strict=True):
        state = SAME
        if name in differing:
            lacks_labels = n_homeless > 0 and name in of_labels
            may_lack = history is None and (lacks_labels or found.event_time - reach[name] < log_begins)
            state = UNKNOWN if may_lack else DIFFERS
        compared.append(RebuiltFeature(name=name, seen=before, rebuilt=after, state=state))
    return RebuiltDecision(
        decision=found,
        log_begins=log_begins,
        reaches_back=reaches_back,
        n_transactions=len(sources[TRANSACTIONS.name]),
        n_labels=len(sources[LABELS.name]),
        n_history=n_history,
        features=tuple(compared),
    )


def spans(features: FeatureSet) -> dict[str, int]:
    """Returns how far back each feature looks at most, in microseconds; 0 for one of the request.

    Example:
        >>> from vitok.clock import DAY
        >>> spans(FEATURES)["amount_to_mean"] // DAY, spans(FEATURES)["is_night"]
        (31, 0)
    """
    from vitok.features.described import features_of

    found = dict.fromkeys((*features.request, "event_time"), 0)
    for view in features.windowed:
        for one in features_of(view):
            found[one.name] = sum(one.recipe["window"]) + (view.available_after or 0)
    for item in features.on_demand:
        found[item.name] = max((found[name] for name in item.inputs), default=0)
    return found


def reading(features: FeatureSet, source: str) -> frozenset[str]:
    """Returns the features that events of a source go into, by themselves or through a function.

    Example:
        >>> sorted(reading(FEATURES, "labels"))[:2]
        ['terminal_labels_count_1d', 'terminal_labels_count_30d']
    """
    found = {name for view in features.windowed if view.source.name == source for name in view.feature_names}
    for item in features.on_demand:
        if found & {*item.inputs}:
            found.add(item.name)
    return frozenset(found)


def _check_definitions(home: Path, found: Decision) -> None:
    number = stores.number_of(found.model_version)
    wanted = None
    if number is not None:
        with stores.ledger(home) as ledger:
            versions = () if ledger is None else ledger.state(SYSTEM).versions
        for version in versions:
            if version.version == number:
                wanted = (stores.document(home, version, "features.json") or {}).get("version")
    if (wanted is not None and wanted != FEATURES.version) or tuple(found.features) != FEATURES.names:
        raise Conflict(
            f"decision {found.decision_id} was made by {found.model_version} with features "
            f"{wanted or 'of other names'}; those declared now are {FEATURES.version}. Rebuild it with the code of then"
        )


def _before(log: Path, found: Decision) -> "pl.DataFrame":
    # The order of the log is the order in which events counted.
    import uuid

    import polars as pl

    since = found.event_time - FEATURES.longest
    columns = ["decision_id", "request_id", "event_time", "customer_id", "terminal_id", "amount"]
    rows = decisions.read(log, since=since, columns=columns)
    place = rows["decision_id"].index_of(uuid.UUID(found.decision_id).bytes)
    return (
        rows.head(place or 0)
        .rename({"request_id": "transaction_id"})
        .select(_PAID)
        .with_columns(pl.lit(value=False).alias("_history"))
    )


def _outcomes(log: Path) -> "pl.DataFrame":
    import polars as pl

    try:
        rows = decisions.read(log, columns=["request_id", "event_time", "ingest_time", "value", "source", "supersedes"])
    except NotFound:
        moment = pl.Datetime("us", "UTC")
        schema: dict[str, Any] = {
            "request_id": pl.String,
            "event_time": moment,
            "ingest_time": moment,
            "value": pl.Float64,
            "source": pl.String,
            "supersedes": pl.Boolean,
        }
        rows = pl.DataFrame(schema=schema)
    return rows.rename(
        {"request_id": "transaction_id", "event_time": "label_time", "ingest_time": "known_time", "value": "is_fraud"}
    )


def _sources(
    paid: "pl.DataFrame",
    outcomes: "pl.DataFrame",
    terminals: "pl.DataFrame",
    history: "Transactions | None",
    started: int,
) -> "tuple[Mapping[str, pl.DataFrame], pl.DataFrame, int, int]":
    """Puts the events of the logs behind those of the history; the first of an id counts, as it did online.

    Returns:
        The sources, the corrections of labels, how many rows of the sources are of the history, and how many labels
        are of transactions that are neither in the log nor in the history, or supersede one that is in neither.
    """
    import polars as pl

    terminals = terminals.rename({"request_id": "transaction_id"})
    labels = outcomes.select(*_TOLD, _history=pl.lit(value=False))
    if history is not None:
        transactions, known = _accepted(history)
        past = {"_history": pl.lit(value=True)}
        paid = pl.concat([transactions.filter(_physical("event_time") < started).with_columns(**past), paid])
        labels = pl.concat([known.filter(_physical("label_time") < started).with_columns(**past), labels])
        terminals = pl.concat([terminals, transactions.select("transaction_id", "terminal_id")])
    paid = paid.unique("transaction_id", keep="first", maintain_order=True)
    terminals = terminals.unique("transaction_id", keep="first")
    events = label_events(labels)
    labels = events.labels.join(terminals, on="transaction_id", how="inner", maintain_order="left")
    corrections = events.corrections.join(terminals, on="transaction_id", how="inner", maintain_order="left")
    n_history = int(paid["_history"].sum()) + int(labels["_history"].sum())
    return (
        {TRANSACTIONS.name: paid.select(_PAID), LABELS.name: labels.select(_KNOWN)},
        corrections,
        n_history,
        len(events.labels) - len(labels) + events.n_orphans,
    )


def _accepted(history: "Transactions") -> "tuple[pl.DataFrame, pl.DataFrame]":
    # As the turn takes them: rows that break the contract never counted.
    import polars as pl

    contract = contracts.load(CONTRACT)
    _, newest = history.span()
    transactions = contract.check(history.transactions, schema="transactions", now=newest).accepted
    labels = contract.check(history.labels, schema="labels", now=newest + history.label_delay_us).accepted
    return (
        transactions.select(_PAID).sort("event_time", maintain_order=True),
        labels.select(
            "transaction_id",
            "label_time",
            pl.col("label_time").alias("known_time"),
            pl.col("is_fraud").cast(pl.Float64),
            pl.lit("").alias("source"),
            pl.lit(value=False).alias("supersedes"),
        ),
    )


def _physical(name: str) -> "pl.Expr":
    import polars as pl

    return pl.col(name).dt.epoch("us")


def _least(rows: "pl.DataFrame", name: str) -> int:
    return int(rows[name].dt.epoch("us").min())  # type: ignore[arg-type]  # of times it is a number


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.10g}"
