"""The request path: from the bytes of a transaction to a logged decision, a whole batch at a time.

limits, contract check, online features, route, model, calibrator, tiers, log, answer. State of the features is a
checkpoint plus the log after it, so a killed service loses no acknowledged decision and counts no event twice.
"""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from vitok import contracts, decisions, ids
from vitok.clock import DAY, MINUTE, Clock, EventClock, SystemClock, isoformat, parse_time
from vitok.decision import Decision, Outcome
from vitok.engines import LmdbStore
from vitok.errors import Conflict, NotFound, ServiceError, StoreError
from vitok.features.warming import warm_up
from vitok.loop import CANARY_FAILED
from vitok.policies import Tiers
from vitok.registry import Registry
from vitok.serving import HotRequest, Reply, Route, problems
from vitok.stats import LatencyHistogram
from vitok.systems.fraud import rules
from vitok.systems.fraud.features import FEATURES, online_features
from vitok.systems.fraud.messages import (
    OUTCOME_KIND,
    SYSTEM,
    Answer,
    Batch,
    OutcomeBatch,
    OutcomeItem,
    Transaction,
    fingerprint,
    log_schema,
    microseconds,
    note,
)
from vitok.systems.fraud.model import LoadedModel

CONTRACT = Path(__file__).with_name("transactions.odcs.yaml")
_BROKEN = "The request breaks the contract"
_LONGEST = 2**31 - 1  # microseconds that the log can hold
_END_OF_TIME = parse_time("3000-01-01")
_LATER = b"retry-after: 1\r\n"
_ONLY = "there is no canary"
PROBATION = 3 * DAY
_LOG = logging.getLogger("vitok.fraud")


class FraudService:
    """Decides on transactions and learns their outcomes; one object owns one home folder.

    Args:
        home: Folder with the registry, the online store and the logs.
        clock: The system's clock, or an `EventClock` that the requests move (for replays of the past).
        durability: `"process"` survives kill -9, `"fsync"` survives a power cut.
        checkpoint_every: Events between two checkpoints of the feature state.

    Raises:
        StoreError: If another service owns the folder, or a store cannot be opened.
    """

    path = "/v1/systems/fraud/decide"

    def __init__(
        self,
        home: Path,
        *,
        clock: Clock | None = None,
        durability: Literal["process", "fsync"] = "process",
        checkpoint_every: int = 20_000,
    ) -> None:
        self.home = home
        self.clock = clock or SystemClock()
        self.features = FEATURES
        self.registry = Registry(home)
        self.quarantine = contracts.Quarantine(home / "quarantine")
        self._checker = contracts.load(CONTRACT).row_checker("transactions")
        self._decoder = msgspec.json.Decoder(Transaction)
        self._outcome_decoder = msgspec.json.Decoder(OutcomeBatch)
        self._encoder = msgspec.json.Encoder()
        self._log = decisions.DecisionLog(home / "log" / "decisions", log_schema(), durability=durability)
        self._outcomes = decisions.OutcomeLog(home / "log" / "outcomes", durability=durability, clock=self.clock)
        self._store = LmdbStore(home / "online")
        self._checkpoint_every = checkpoint_every
        self._since_checkpoint = 0
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._save: Future[None] | None = None
        self.latency = LatencyHistogram()
        self.counts: dict[str, int] = {}
        self.recovered_events = 0
        self._revision = -1
        self._next_look = 0.0
        self.champion: LoadedModel | None = None
        self.canary: LoadedModel | None = None
        self.previous: LoadedModel | None = None
        self.route: Route | None = None
        self._probation_end = 0
        warm_up(FEATURES)
        self.recover()
        self.refresh()

    # State

    def recover(self) -> None:
        """Reads the feature state of the last checkpoint and adds what the logs hold after it."""
        self.online = online_features(self._store)
        self._advance(self.online.newest)
        positions = self.online.positions()
        self.recovered_events = 0
        tail = decisions.Tail(self.home / "log" / "decisions", positions.get("decisions"))
        while (frame := tail.read(50_000)) is not None:
            columns = ("request_id", "decision_id", "event_time", "customer_id", "terminal_id", "amount")
            rows = frame.select(columns).to_dicts()
            times = [microseconds(row["event_time"]) for row in rows]
            notes = [
                note(row["decision_id"], moment, row["customer_id"], row["terminal_id"], row["amount"])
                for row, moment in zip(rows, times, strict=True)
            ]
            self._advance(max(times, default=0))
            self.online.add_many("transactions", [row["request_id"] for row in rows], times, rows, notes=notes)
            self.recovered_events += len(rows)
        tail.close()
        tail = decisions.Tail(self.home / "log" / "outcomes", positions.get("outcomes"))
        while (frame := tail.read(50_000)) is not None:
            rows = frame.select("request_id", "event_time", "value").to_dicts()
            self._learn([(row["request_id"], microseconds(row["event_time"]), row["value"]) for row in rows])
            self.recovered_events += len(rows)
        tail.close()

    def refresh(self) -> None:
        """Follows the ledger: loads the versions that it names and routes by it."""
        revision = self.registry.ledger.revision()
        if revision == self._revision:
            return
        state = self.registry.ledger.state(SYSTEM)
        known = (self.champion, self.canary, self.previous)
        loaded = {model.version: model for model in known if model is not None}
        self.champion = self._load(state.production, "Production", loaded)
        self.canary = self._load(state.canary, "Staging", loaded) if state.canary_share else None
        self._probation_end = self._probation(state.production)
        self.previous = self._load(state.previous, "Archived", loaded) if self._probation_end else None
        if self.champion is None:
            self.route = None
        elif self.canary is None:
            self.route = Route(champion=self.champion.version)
        else:
            self.route = Route(
                champion=self.champion.version,
                canary=self.canary.version,
                share=state.canary_share,
                salt=self.canary.version,
            )
        self._revision = revision

    def _probation(self, production: int | None) -> int:
        # Until when the version before is scored beside a new champion; 0 where there is none, or after a roll back.
        for entry in reversed(self.registry.ledger.history(SYSTEM)):
            if entry.kind == "promoted" and entry.version == production and entry.stage_to == "Production":
                return 0 if "rollback_of" in entry.details else entry.time_us + PROBATION
        return 0

    def _load(self, number: int | None, stage: str, loaded: Mapping[str, LoadedModel]) -> LoadedModel | None:
        if number is None:
            return None
        version = f"{SYSTEM}/{number}"
        if version in loaded:
            return dataclasses.replace(loaded[version], stage=stage)
        try:
            return LoadedModel.load(self.registry.load(SYSTEM, number), version, stage, self.features)
        except (NotFound, Conflict, StoreError, ServiceError) as error:
            # An unreadable version must not stop decisions: the one before it, or the rules, go on.
            _LOG.exception("model %s cannot be loaded", version)
            self.count("model_load_failures")
            del error
            return loaded.get(self.champion.version) if self.champion is not None and stage == "Production" else None

    def count(self, name: str, n: int = 1) -> None:
        """Adds to a counter that `/metrics` shows."""
        self.counts[name] = self.counts.get(name, 0) + n

    def _advance(self, moment: int) -> None:
        if isinstance(self.clock, EventClock):
            self.clock.advance(moment)

    # Decisions

    def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
        """Answers a batch of requests for decisions, in order."""
        started = time.perf_counter()
        cpu = time.thread_time_ns()
        if started >= self._next_look:
            self._next_look = started + 0.05
            self.refresh()
        replies: list[Reply | None] = [None] * len(requests)
        batch = Batch()
        repeated: dict[int, str] = {}
        for i, request in enumerate(requests):
            problem = self._admit(request, i, batch, repeated)
            if problem is not None:
                replies[i] = problem
        n = len(batch.index)
        if n:
            failure = self._decide(requests, self._features(batch), batch, cpu, replies)
            if failure is not None:
                for i in (*batch.index, *repeated):
                    replies[i] = failure
                repeated = {}
        for i, transaction_id in repeated.items():
            replies[i] = self._again(transaction_id)
        self.count("requests", len(requests))
        self._maybe_checkpoint(n)
        return [
            reply if reply is not None else problems.problem(500, "No answer", "This is a fault of the service.")
            for reply in replies
        ]

    def _admit(self, request: HotRequest, i: int, batch: Batch, repeated: dict[int, str]) -> Reply | None:
        # Takes one request into the batch, or says why not.
        try:
            item = self._decoder.decode(request.body)
        except problems.UNDECODABLE as error:
            self.count("rejected")
            return problems.from_decode_error(error, request.body)
        moment = microseconds(item.event_time)
        row: dict[str, Any] = {
            "transaction_id": str(item.transaction_id),
            "event_time": item.event_time,
            "customer_id": str(item.customer_id),
            "terminal_id": str(item.terminal_id),
            "amount": item.amount,
        }
        broken = self._checker(row)
        if broken:
            self.count("rejected")
            reason = "; ".join(violation.message for violation in broken)
            self.quarantine.put_row(request.body, reason, now=self.clock.now())
            errors = [{"field": violation.field, "detail": violation.message} for violation in broken]
            return problems.problem(
                422, "The request breaks the contract", reason, field=broken[0].field, errors=errors
            )
        wrong = self._wrong_time(moment)
        if wrong:
            self.count("rejected")
            return problems.problem(422, _BROKEN, wrong, field="event_time")
        transaction_id, customer, terminal = row["transaction_id"], row["customer_id"], row["terminal_id"]
        known = batch.notes.get(transaction_id) or self.online.note("transactions", transaction_id)
        print_ = fingerprint(moment, customer, terminal, item.amount)
        if known is not None:
            if known[16:24] != print_:
                self.count("conflicts")
                detail = f"transaction_id: {transaction_id!r} was seen before with other contents"
                return problems.problem(409, "Conflict", detail, field="transaction_id")
            self.count("repeated")
            repeated[i] = transaction_id
            return None
        self._advance(moment)
        decision_id = ids.uuid7()
        batch.rows.append(row)
        batch.notes[transaction_id] = decision_id + print_ + terminal.encode()
        batch.index.append(i)
        batch.decision_id.append(decision_id)
        batch.transaction_id.append(transaction_id)
        batch.event_time.append(moment)
        batch.customer.append(customer)
        batch.terminal.append(terminal)
        batch.amount.append(item.amount)
        return None

    def _features(self, batch: Batch) -> np.ndarray:
        # What is known of each transaction before it counts itself, in the order of arrival.
        values = np.empty((len(batch.index), len(self.features.names)))
        values[:, 0] = batch.amount
        batch.status = self.online.serve(
            "transactions",
            batch.transaction_id,
            batch.event_time,
            batch.rows,
            values,
            notes=list(batch.notes.values()),
        )
        self.features.add_on_demand(values, np.array(batch.event_time, np.int64))
        return values

    def _wrong_time(self, moment: int) -> str:
        # Says what is wrong with the time of an event; empty where nothing is.
        if not 0 <= moment < _END_OF_TIME:
            return f"event_time: got {moment} microseconds since 1970, must lie in the years 1970 to 2999"
        if not isinstance(self.clock, EventClock) and moment > self.clock.now() + 5 * MINUTE:
            return (
                f"event_time: got {isoformat(moment)}, must not lie in the future (now {isoformat(self.clock.now())})"
            )
        return ""

    def _decide(
        self,
        requests: Sequence[HotRequest],
        values: np.ndarray,
        batch: Batch,
        cpu: int,
        replies: list[Reply | None],
    ) -> Reply | None:
        # Scores, acts, logs and answers; returns the answer for all where the log could not be written.
        n = len(batch.index)
        verdicts = self._verdicts(values, batch)
        now = time.perf_counter_ns()
        latency = [min(max(0, (now - requests[i].arrived) // 1000), _LONGEST) for i in batch.index]
        block = decisions.DecisionBlock(
            decision_id=batch.decision_id,
            request_id=batch.transaction_id,
            event_time=batch.event_time,
            ingest_time=[self.clock.now()] * n,
            entities=(batch.customer, batch.terminal),
            request=(batch.amount,),
            features=values,
            feature_status=batch.status,
            latency_us=latency,
            cost=np.full(n, (time.thread_time_ns() - cpu) / n / 1e9),
            **verdicts,
        )
        try:
            self._log.append(block)
        except StoreError as error:
            # The events of this batch are in the feature state but not in the log: go back to what the log says.
            self.count("log_failures")
            self._wait_for_save()
            self.recover()
            return problems.problem(
                503, "The decision could not be recorded", str(error), headers=b"retry-after: 1\r\n"
            )
        self.latency.record_many(np.array(latency))
        self.count("decisions", n)
        for row, i in enumerate(batch.index):
            probability = float(verdicts["probability"][row])
            answer = Answer(
                ids.text(batch.decision_id[row]),
                batch.transaction_id[row],
                verdicts["action"][row],
                probability if probability == probability else None,
                float(verdicts["propensity"][row]),
                verdicts["model_version"][row],
                verdicts["route"][row],
                batch.status[row],
            )
            replies[i] = Reply(200, self._encoder.encode(answer))
        return None

    def _verdicts(self, values: np.ndarray, batch: Batch) -> dict[str, Any]:
        # The columns of the log that come of models, route and policy.
        n = len(values)
        champion, canary = self.champion, self.canary
        if champion is None or self.route is None:
            return self._by_rules(values, "no version is in Production")
        amount = np.array(batch.amount)
        try:
            score, probability = champion.answer(values)
        except ServiceError as error:
            self.count("fallbacks", n)
            return self._by_rules(values, str(error))
        tiers = champion.policy.decide(probability, amount, batch.transaction_id)
        columns: dict[str, Any] = {
            "model_version": [champion.version] * n,
            "stage": [champion.stage] * n,
            "route": ["champion"] * n,
            "route_reason": [_ONLY] * n,
            "score": score,
            "probability": probability,
            "shadow_version": [None] * n,
            "shadow_probability": np.full(n, np.nan),
            "policy_version": [champion.policy.version] * n,
            "action": tiers.actions,
            "propensity": tiers.propensity,
        }
        beside = canary
        if beside is None and self.previous is not None and self.clock.now() < self._probation_end:
            beside = self.previous
        if beside is None:
            return columns
        try:
            other_score, other_probability = beside.answer(values)
        except ServiceError as error:
            self.count("shadow_failures", n)
            _LOG.warning("%s failed: %s", beside.version, error)
            columns["route_reason"] = [CANARY_FAILED if beside is canary else _ONLY] * n
            return columns
        columns["shadow_version"] = [beside.version] * n
        columns["shadow_probability"] = other_probability
        if canary is not None:
            tiers = canary.policy.decide(other_probability, amount, batch.transaction_id)
            self._to_canary(columns, batch, canary, other_score, tiers)
        return columns

    def _to_canary(
        self, columns: dict[str, Any], batch: Batch, canary: LoadedModel, score: np.ndarray, tiers: Tiers
    ) -> None:
        # Gives the canary its share of the customers; on those the champion becomes the shadow.
        assert self.route is not None  # noqa: S101
        assignments = [self.route.assign(customer) for customer in batch.customer]
        columns["route_reason"] = [assignment.reason for assignment in assignments]
        mask = np.array([assignment.route == "canary" for assignment in assignments])
        champion_probability = columns["probability"]
        columns["probability"] = np.where(mask, columns["shadow_probability"], champion_probability)
        columns["shadow_probability"] = np.where(mask, champion_probability, columns["shadow_probability"])
        columns["score"] = np.where(mask, score, columns["score"])
        columns["propensity"] = np.where(mask, tiers.propensity, columns["propensity"])
        for row in np.flatnonzero(mask):
            columns["shadow_version"][row] = columns["model_version"][row]
            columns["route"][row] = "canary"
            columns["model_version"][row], columns["stage"][row] = canary.version, canary.stage
            columns["policy_version"][row] = canary.policy.version
            columns["action"][row] = tiers.actions[row]

    def _by_rules(self, values: np.ndarray, reason: str) -> dict[str, Any]:
        n = len(values)
        score = rules.rule_score({name: values[:, i] for i, name in enumerate(self.features.names)})
        return {
            "model_version": [rules.VERSION] * n,
            "stage": ["None"] * n,
            "route": ["fallback"] * n,
            "route_reason": [reason] * n,
            "score": score,
            "probability": np.full(n, np.nan),
            "shadow_version": [None] * n,
            "shadow_probability": np.full(n, np.nan),
            "policy_version": [rules.VERSION] * n,
            "action": rules.rule_actions(score),
            "propensity": np.ones(n),
        }

    def _again(self, transaction_id: str) -> Reply:
        # The same request gets the same decision.
        found = decisions.find(self.home / "log" / "decisions", request_id=transaction_id)
        if found is None:
            detail = (
                f"transaction_id: {transaction_id!r} belongs to the history that was loaded; it was not decided here"
            )
            return problems.problem(409, "Conflict", detail, field="transaction_id")
        answer = Answer(
            found.decision_id,
            found.request_id,
            found.action,
            found.probability if found.probability == found.probability else None,
            found.propensity,
            found.model_version,
            found.route,
            found.feature_status,
        )
        return Reply(200, self._encoder.encode(answer))

    # Outcomes

    def learn(self, body: bytes) -> Reply:
        """Takes outcomes: logs them, joins them to their transactions, and adds them to the features."""
        try:
            batch = self._outcome_decoder.decode(body)
        except problems.UNDECODABLE as error:
            self.count("rejected")
            return problems.from_decode_error(error, body)
        accepted: list[Outcome] = []
        rejected: list[dict[str, Any]] = []
        duplicates = 0
        seen: set[str] = set()
        for index, item in enumerate(batch.outcomes):
            request_id = str(item.request_id)
            reason = self._refusal(item, request_id)
            if reason:
                self.quarantine.put_row(msgspec.json.encode(item), reason, now=self.clock.now())
                rejected.append({"index": index, "request_id": request_id, "detail": reason})
                continue
            known = request_id in seen or self.online.seen("labels", request_id)
            if known and not item.supersedes:
                duplicates += 1
                continue
            seen.add(request_id)
            moment = microseconds(item.event_time)
            self._advance(moment)
            accepted.append(
                Outcome(
                    request_id=request_id,
                    kind=item.kind,
                    value=item.value,
                    event_time=moment,
                    ingest_time=self.clock.now(),
                    source=item.source,
                    supersedes=item.supersedes,
                )
            )
        if accepted:
            try:
                self._outcomes.append(accepted)
            except StoreError as error:
                self.count("log_failures")
                return problems.problem(
                    503, "The outcomes could not be recorded", str(error), headers=b"retry-after: 1\r\n"
                )
            self._learn([(outcome.request_id, outcome.event_time, outcome.value) for outcome in accepted])
        self.count("outcomes", len(accepted))
        self.count("rejected_outcomes", len(rejected))
        self._maybe_checkpoint(len(accepted))
        result = {"accepted": len(accepted), "duplicates": duplicates, "rejected": rejected}
        return Reply(200, self._encoder.encode(result))

    def _refusal(self, item: OutcomeItem, request_id: str) -> str:
        if item.kind != OUTCOME_KIND:
            return f"kind: got {item.kind!r}, must be {OUTCOME_KIND!r}"
        if item.value not in (0.0, 1.0):
            return f"value: got {item.value!r}, must be 0 or 1"
        if self.online.note("transactions", request_id) is None:
            return f"request_id: got {request_id!r}, must be a transaction that was decided or loaded before"
        return self._wrong_time(microseconds(item.event_time))

    def _learn(self, outcomes: Sequence[tuple[str, int, float]]) -> None:
        # Adds (transaction, time, label) to the features of the transaction's terminal.
        known = [(item, self.online.note("transactions", item[0])) for item in outcomes]
        found = [(item, noted[24:].decode()) for item, noted in known if noted is not None]
        self._advance(max((moment for (_, moment, _), _ in found), default=0))
        self.online.add_many(
            "labels",
            [request_id for (request_id, _, _), _ in found],
            [moment for (_, moment, _), _ in found],
            [{"terminal_id": terminal, "is_fraud": value} for (_, _, value), terminal in found],
        )

    # Upkeep

    def _maybe_checkpoint(self, n: int) -> None:
        self._since_checkpoint += n
        if self._since_checkpoint < self._checkpoint_every or (self._save is not None and not self._save.done()):
            return
        self.checkpoint()

    def checkpoint(self) -> None:
        """Begins a checkpoint of the feature state; it is written in the background."""
        self._wait_for_save()
        self._since_checkpoint = 0
        positions = {"decisions": list(self._log.position), "outcomes": list(self._outcomes.position)}
        self._save = self._saver.submit(self.online.save, self.online.begin_checkpoint(positions))

    def _wait_for_save(self) -> None:
        if self._save is not None:
            error = self._save.exception()
            if error is not None:
                self.count("checkpoint_failures")
                _LOG.error("a checkpoint could not be saved: %s", error)
            self._save = None

    def ready(self) -> dict[str, str]:
        """Says for each part whether it can do its work: `"ok"`, or what is wrong."""
        parts = {"model": "ok" if self.champion is not None else "no version is in Production; rules answer"}
        try:
            self._store.get("meta", b"features")
            parts["online_store"] = "ok"
        except StoreError as error:
            parts["online_store"] = str(error)
        parts["decision_log"] = "ok" if not self.counts.get("log_failures") else "appends have failed"
        return parts

    def find(self, decision_id: str) -> Decision:
        """Returns one decision.

        Raises:
            NotFound: If there is none of that id.
        """
        found = decisions.find(self.home / "log" / "decisions", decision_id=decision_id)
        if found is None:
            raise NotFound("decision", decision_id, ["the ids that POST /v1/systems/fraud/decide returned"])
        return found

    def close(self) -> None:
        """Saves the feature state, seals the logs and lets the folder go."""
        self.checkpoint()
        self._wait_for_save()
        self._saver.shutdown()
        self._log.close()
        self._outcomes.close()
        self._store.close()
        self.registry.close()
