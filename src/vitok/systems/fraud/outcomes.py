"""What became of transactions: outcomes are checked, logged, joined to their transactions, and learned from."""

from collections.abc import Callable
from typing import Any

import msgspec

from vitok.contracts import Quarantine
from vitok.decision import Outcome
from vitok.decisions import OutcomeLog
from vitok.errors import StoreError
from vitok.serving import UNDECODABLE, Reply, from_decode_error, problem
from vitok.systems.fraud.label_events import Standing
from vitok.systems.fraud.messages import OUTCOME_KIND, OutcomeBatch, OutcomeItem, microseconds
from vitok.systems.fraud.state import FeatureState
from vitok.systems.fraud.timekeeping import Timekeeper

LATER = b"retry-after: 1\r\n"


class OutcomeDesk:
    """Takes outcomes. One that is known already counts once; one that cannot be right is named and kept aside.

    One that supersedes changes the label from then on, for the label view of the log and for the features alike (see
    `vitok.systems.fraud.label_events`). An older one that comes late, and one that is delivered again, counts among the
    duplicates and is not logged: what stands in the log last is what stands. One that says it supersedes where nothing
    was known is a first label, and is logged as one.

    Args:
        log: Where they are written before anything learns from them.
        state: Learns from them.
        times: Says which moments an outcome may have.
        quarantine: Keeps what is refused, with the reason.
        count: Counts what happened.
    """

    def __init__(
        self,
        log: OutcomeLog,
        state: FeatureState,
        times: Timekeeper,
        quarantine: Quarantine,
        *,
        count: Callable[[str, int], None],
    ) -> None:
        self._log = log
        self._state = state
        self._times = times
        self._quarantine = quarantine
        self._count = count
        self._decoder = msgspec.json.Decoder(OutcomeBatch)

    def learn(self, body: bytes) -> Reply:
        """Answers the body of `POST /v1/outcomes`."""
        try:
            batch = self._decoder.decode(body)
        except UNDECODABLE as error:
            self._count("rejected", 1)
            return from_decode_error(error, body)
        accepted: list[Outcome] = []
        rejected: list[dict[str, Any]] = []
        duplicates = 0
        stands: dict[str, Standing] = {}
        for index, item in enumerate(batch.outcomes):
            request_id = str(item.request_id)
            reason = self._refusal(item, request_id)
            if reason:
                self._quarantine.put_row(msgspec.json.encode(item), reason, now=self._times.now())
                rejected.append({"index": index, "request_id": request_id, "detail": reason})
                continue
            outcome = self._outcome(item, request_id, stands)
            if outcome is None:
                duplicates += 1
            else:
                accepted.append(outcome)
        if accepted:
            try:
                self._log.append(accepted)
            except StoreError as error:
                self._count("log_failures", 1)
                return problem(503, "The outcomes could not be recorded", str(error), headers=LATER)
            self._state.learn(accepted)
        self._count("outcomes", len(accepted))
        self._count("rejected_outcomes", len(rejected))
        result = {"accepted": len(accepted), "duplicates": duplicates, "rejected": rejected}
        return Reply(200, msgspec.json.encode(result))

    def _outcome(self, item: OutcomeItem, request_id: str, stands: dict[str, Standing]) -> Outcome | None:
        # None where it changes nothing; `stands` has what this batch has changed before.
        labelled = request_id in stands or self._state.labelled(request_id)
        if labelled and not item.supersedes:
            return None
        moment = microseconds(item.event_time)
        if labelled or moment < self._times.now():
            # The clock of a replay stands still between events: a tick tells what was decided before a label came late
            # or changed from what was decided after it.
            self._times.advance(self._times.now() + 1)
        self._times.advance(moment)
        learned = self._times.now()
        before = (stands.get(request_id) or self._state.standing(request_id)) if labelled else None
        if before is not None:
            learned = before.learned_after(learned)
            self._times.advance(learned)
        told = (item.value, moment, item.source, learned)
        after = before.after(*told) if before is not None else Standing.first(*told)
        if after is None:
            return None
        stands[request_id] = after
        return Outcome(
            request_id=request_id,
            kind=item.kind,
            value=item.value,
            event_time=moment,
            ingest_time=learned,
            source=item.source,
            supersedes=labelled,
        )

    def _refusal(self, item: OutcomeItem, request_id: str) -> str:
        if item.kind != OUTCOME_KIND:
            return f"kind: got {item.kind!r}, must be {OUTCOME_KIND!r}"
        if item.value not in (0.0, 1.0):
            return f"value: got {item.value!r}, must be 0 or 1"
        if self._state.noted(request_id) is None:
            return f"request_id: got {request_id!r}, must be a transaction that was decided or loaded before"
        return self._times.wrong(microseconds(item.event_time))
