"""The request path: from the bytes of a transaction to a logged decision, all that came in one turn together.

Read `FraudService.handle`: it is the story. `intake` reads and checks, `state` knows customers and terminals,
`versions` says who answers, `verdicts` asks them, and the decision log is written before any answer leaves.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from vitok import contracts, decisions, ids
from vitok.clock import Clock, SystemClock
from vitok.decision import Decision
from vitok.errors import InvalidInput, NotFound, StoreError
from vitok.registry import Registry
from vitok.serving import HotRequest, Reply, problem
from vitok.serving.costs import CostMeter
from vitok.serving.hosted import Answered
from vitok.serving.tracing import Moments, Stages, Traced, Tracing
from vitok.stats import LatencyHistogram
from vitok.systems.fraud.challenger_serving import ChallengerShadow
from vitok.systems.fraud.edge import OUTCOMES
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.intake import Accepted, Intake
from vitok.systems.fraud.messages import Answer, log_schema
from vitok.systems.fraud.outcomes import LATER, OutcomeDesk
from vitok.systems.fraud.sketching import hour_sealer
from vitok.systems.fraud.state import FeatureState
from vitok.systems.fraud.timekeeping import Timekeeper
from vitok.systems.fraud.verdicts import Scorer, Verdicts, every
from vitok.systems.fraud.versions import Versions

DEADLINE = 0.05
_LONGEST = 2**31 - 1  # microseconds that the log can hold
_UNREADY_SECONDS = 10.0
_FAULT = problem(500, "No answer", "This is a fault of the service.")


class FraudService:
    """Decides on transactions and learns their outcomes; one object owns one home folder.

    Args:
        home: Folder with the registry, the online store and the logs.
        clock: The system's clock, or an `EventClock` that the requests move (for replays of the past).
        durability: `"process"` survives kill -9, `"fsync"` survives a power cut.
        checkpoint_every: Events between two checkpoints of the feature state.
        deadline: Seconds from a request's arrival after which no model is asked for it.
        tracing: Which requests are traced, and where the traces go; None where none is. Whoever made it closes it.
        team_of: The team of a tenant, for the log, as `vitok.serving.spending.teams_of` makes it.
        meter: What decisions are charged to; it knows the teams, and adds what the process takes besides. None logs
            what the turn of a decision has measured.

    Attributes:
        counts: What happened, by kind.
        latency: From the arrival of a request to the write of its record.
        stages: Where that time goes.
        versions: Who answers; `versions.refresh()` follows the ledger.
        challenger: The shadow that learns online; `challenger.refresh()` takes its newest snapshot.
        tracing: As given.

    Raises:
        InvalidInput: If the deadline is not above zero.
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
        deadline: float = DEADLINE,
        tracing: Tracing | None = None,
        team_of: Callable[[str], str] = str,
        meter: CostMeter | None = None,
    ) -> None:
        if not 0 < deadline < 3600:
            raise InvalidInput("deadline", deadline, "be seconds, above zero and below an hour")
        self.home = home
        self.clock = clock or SystemClock()
        self.features = FEATURES
        self.tracing = tracing
        self._team_of = team_of
        self._meter = meter
        self.counts: dict[str, int] = {}
        self._unrecorded_at: float | None = None
        self.latency = LatencyHistogram()
        self.stages = Stages(LatencyHistogram(), self.latency)
        self.registry = Registry(home)
        self.quarantine = contracts.Quarantine(home / "quarantine")
        counted = hour_sealer(self.registry)
        self._log = decisions.DecisionLog(
            home / "log" / "decisions", log_schema(), durability=durability, on_seal=counted
        )
        self._outcomes = decisions.OutcomeLog(home / "log" / "outcomes", durability=durability, clock=self.clock)
        times = Timekeeper(self.clock)
        self.state = FeatureState(
            home,
            FEATURES,
            times,
            positions=self._positions,
            checkpoint_every=checkpoint_every,
            count=self.count,
        )
        self.versions = Versions(self.registry, FEATURES, slow_after=deadline, count=self.count, clock=self.clock)
        self.versions.refresh()
        self._intake = Intake(times, self.quarantine, noted=self.state.noted, count=self.count)
        self.challenger = ChallengerShadow(home, FEATURES, count=self.count)
        self.challenger.refresh()
        self._scorer = Scorer(FEATURES, deadline=deadline, count=self.count, challenger=self.challenger)
        self._desk = OutcomeDesk(self._outcomes, self.state, times, self.quarantine, count=self.count)
        self._encode = msgspec.json.Encoder().encode

    def count(self, name: str, n: int = 1) -> None:
        """Adds to a counter that `/metrics` shows."""
        self.counts[name] = self.counts.get(name, 0) + n
        if name == "log_failures":
            self._unrecorded_at = time.monotonic()

    # Decisions

    def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
        """Answers a turn of requests for decisions, in order."""
        started, cpu = time.perf_counter_ns(), time.thread_time_ns()
        traced = self.tracing.pick(requests) if self.tracing is not None else ()
        accepted = self._intake.read(requests)
        accepted.begin({one.place: one.trace_id for one in traced})
        replies = dict(accepted.refused)
        moments = Moments(started)
        answering: Verdicts | None = None
        if accepted:
            values, status = self.state.serve(accepted)
            read = time.perf_counter_ns()
            verdicts = self._scorer.verdicts(values, accepted, self.versions.current, now=self.clock.now(), now_ns=read)
            ran = time.perf_counter_ns()
            try:
                self._record(accepted, values, status, verdicts, ran, cpu)
            except StoreError as error:
                # The events of this turn are in the feature state but not in the log: go back to what the log says.
                self.count("log_failures")
                self.state.recover()
                refusal = problem(503, "The decision could not be recorded", str(error), headers=LATER)
                replies.update(dict.fromkeys((*accepted.index, *accepted.repeated), refusal))
                accepted.repeated.clear()
            else:
                moments = Moments(started, read, ran, time.perf_counter_ns())
                answering = verdicts
                replies.update(self._answers(accepted, status, verdicts))
                self._measure(accepted, moments)
                self.state.grew(len(accepted))
        for place, transaction_id in accepted.repeated.items():
            replies[place] = self._again(transaction_id)
        self.count("requests", len(requests))
        out = [replies.get(place, _FAULT) for place in range(len(requests))]
        if traced:
            self._trace(traced, accepted, answering, moments, out)
        return out

    def _record(
        self, accepted: Accepted, values: np.ndarray, status: list[str], verdicts: Verdicts, ran: int, cpu: int
    ) -> None:
        n = len(accepted)
        latency = np.array([min(max(0, (ran - arrived) // 1000), _LONGEST) for arrived in accepted.arrived], np.int32)
        measured = time.thread_time_ns() - cpu
        cost: float | np.ndarray = measured / n / 1e9
        if self._meter is not None:
            batch = Answered(
                next(iter(verdicts.versions())),
                values,
                verdicts.score,
                accepted.transaction_id,
                latency,
                0.0,
                verdicts.chosen(),
                tenants=accepted.tenant,
            )
            cost = self._meter.charge(batch, measured)
            teams = list(batch.teams or ())
        else:
            teams = [self._team_of(tenant) for tenant in accepted.tenant]
        self._log.append(
            decisions.DecisionBlock(
                decision_id=accepted.decision_id,
                request_id=accepted.transaction_id,
                event_time=np.array(accepted.event_time, np.int64),
                ingest_time=np.full(n, self.clock.now()),
                entities=(accepted.customer, accepted.terminal),
                request=(accepted.amount,),
                features=values,
                feature_status=_shared(status),
                model_version=verdicts.model_version,
                stage=verdicts.stage,
                route=verdicts.route,
                route_reason=verdicts.route_reason,
                score=verdicts.score,
                probability=verdicts.probability,
                shadow_version=verdicts.shadow_version,
                shadow_probability=verdicts.shadow_probability,
                policy_version=verdicts.policy_version,
                action=verdicts.action,
                propensity=verdicts.propensity,
                latency_us=latency,
                cost=np.full(n, cost),
                tenant=_shared(accepted.tenant),
                team=_shared(teams),
                trace_id=_shared(accepted.trace_id),
            )
        )
        self.count("decisions", n)

    def _answers(self, accepted: Accepted, status: list[str], verdicts: Verdicts) -> dict[int, Reply]:
        answers = {}
        whose = zip(accepted.index, accepted.decision_id, accepted.transaction_id, status, strict=True)
        for (place, decision_id, transaction_id, fresh), verdict in zip(whose, verdicts.rows(), strict=True):
            action, probability, propensity, version, route = verdict
            answer = Answer(
                ids.text(decision_id),
                transaction_id,
                action,
                probability if probability == probability else None,
                propensity,
                version,
                route,
                fresh,
            )
            answers[place] = Reply(200, self._encode(answer))
        return answers

    def _measure(self, accepted: Accepted, moments: Moments) -> None:
        ended = time.perf_counter_ns()
        self.stages.histograms["wait"].record_since(accepted.arrived, moments.started)
        self.latency.record_since(accepted.arrived, ended)
        self.stages.record(moments, ended)

    def _trace(
        self,
        traced: Sequence[Traced],
        accepted: Accepted,
        verdicts: Verdicts | None,
        moments: Moments,
        replies: Sequence[Reply],
    ) -> None:
        # The requests of a turn may have been answered by several versions; who was refused was by none.
        assert self.tracing is not None  # noqa: S101 - it has picked them
        answered = {} if verdicts is None else dict(zip(accepted.index, verdicts.versions(), strict=True))
        by_version: dict[str, list[Traced]] = {}
        for one in traced:
            by_version.setdefault(answered.get(one.place, ""), []).append(one)
        for version, some in by_version.items():
            self.tracing.note(
                some,
                moments if version else Moments(moments.started),
                route=self.path,
                version=version,
                requests=len(replies),
                replies=replies,
            )

    def _again(self, transaction_id: str) -> Reply:
        # The same request gets the same decision.
        found = decisions.find(self.home / "log" / "decisions", request_id=transaction_id)
        if found is None:
            detail = (
                f"transaction_id: {transaction_id!r} belongs to the history that was loaded; it was not decided here"
            )
            return problem(409, "Conflict", detail, field="transaction_id")
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
        return Reply(200, self._encode(answer))

    # Outcomes and look-ups

    def learn(self, body: bytes) -> Reply:
        """Takes outcomes: logs them, joins them to their transactions, and adds them to the features."""
        return self._desk.learn(body)

    def take(self, request: HotRequest) -> Reply:
        """Takes the outcomes of a request that has passed the guard, and traces it."""
        traced = self.tracing.pick([request]) if self.tracing is not None else ()
        reply = self.learn(request.body)
        if self.tracing is not None:
            learned = Moments(request.arrived, logged=time.perf_counter_ns())
            self.tracing.note(traced, learned, route=OUTCOMES, replies=[reply])
        return reply

    def find(self, decision_id: str) -> Decision:
        """Returns one decision.

        Raises:
            NotFound: If there is none of that id.
        """
        found = decisions.find(self.home / "log" / "decisions", decision_id=decision_id)
        if found is None:
            raise NotFound("decision", decision_id, ["the ids that POST /v1/systems/fraud/decide returned"])
        return found

    # Upkeep

    def refresh(self) -> None:
        """Puts in force what the ledger says by now, and takes the challenger's newest snapshot.

        Call it beside the requests, again and again.

        Raises:
            StoreError: If the ledger cannot be read; the challenger's snapshot is taken all the same.
        """
        self.challenger.refresh()
        self.versions.refresh()

    def ready(self) -> dict[str, str]:
        """Says for each part whether it can do its work: `"ok"`, or what is wrong.

        After an append that failed the log is said to be broken for ten seconds: a balancer that goes by it then sends
        requests again, and the first of them shows whether the disk has room.
        """
        failed = self._unrecorded_at is not None and time.monotonic() - self._unrecorded_at < _UNREADY_SECONDS
        return {
            "model": self.versions.problem() or "ok",
            "online_store": self.state.problem() or "ok",
            "decision_log": "an append has just failed" if failed else "ok",
            "registry": self.registry.problem() or "ok",
        }

    def can_decide(self) -> bool:
        """Says whether it can decide and record; without a model, rules decide."""
        parts = self.ready()
        return all(parts[name] == "ok" for name in ("online_store", "decision_log"))

    def _positions(self) -> Mapping[str, Sequence[int]]:
        return {"decisions": self._log.position, "outcomes": self._outcomes.position}

    def close(self) -> None:
        """Saves the feature state, seals the logs and lets the folder go."""
        self.state.close()
        self._log.close()
        self._outcomes.close()
        self.registry.close()


def _shared(texts: list[str]) -> Sequence[str] | decisions.Constant:
    # Mostly all rows of a turn say the same, and then the column costs nothing.
    return every(texts[0]) if texts.count(texts[0]) == len(texts) else texts
