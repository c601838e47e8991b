"""What became of transactions: outcomes are checked, logged, joined to their transactions, and learned from."""

from collections.abc import Callable
from typing import Any

import msgspec

from vitok.contracts import Quarantine
from vitok.decision import Outcome
from vitok.decisions import OutcomeLog
from vitok.errors import StoreError
from vitok.serving import UNDECODABLE, Reply, from_decode_error, problem
from vitok.systems.fraud.messages import OUTCOME_KIND, OutcomeBatch, OutcomeItem, microseconds
from vitok.systems.fraud.state import FeatureState
from vitok.systems.fraud.timekeeping import Timekeeper

LATER = b"retry-after: 1\r\n"


class OutcomeDesk:
    """Takes outcomes. One that is known already counts once; one that cannot be right is named and kept aside.

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
        seen: set[str] = set()
        for index, item in enumerate(batch.outcomes):
            request_id = str(item.request_id)
            reason = self._refusal(item, request_id)
            if reason:
                self._quarantine.put_row(msgspec.json.encode(item), reason, now=self._times.now())
                rejected.append({"index": index, "request_id": request_id, "detail": reason})
                continue
            if not item.supersedes and (request_id in seen or self._state.labelled(request_id)):
                duplicates += 1
                continue
            seen.add(request_id)
            moment = microseconds(item.event_time)
            self._times.advance(moment)
            accepted.append(
                Outcome(
                    request_id=request_id,
                    kind=item.kind,
                    value=item.value,
                    event_time=moment,
                    ingest_time=self._times.now(),
                    source=item.source,
                    supersedes=item.supersedes,
                )
            )
        if accepted:
            try:
                self._log.append(accepted)
            except StoreError as error:
                self._count("log_failures", 1)
                return problem(503, "The outcomes could not be recorded", str(error), headers=LATER)
            self._state.learn([(outcome.request_id, outcome.event_time, outcome.value) for outcome in accepted])
        self._count("outcomes", len(accepted))
        self._count("rejected_outcomes", len(rejected))
        result = {"accepted": len(accepted), "duplicates": duplicates, "rejected": rejected}
        return Reply(200, msgspec.json.encode(result))

    def _refusal(self, item: OutcomeItem, request_id: str) -> str:
        if item.kind != OUTCOME_KIND:
            return f"kind: got {item.kind!r}, must be {OUTCOME_KIND!r}"
        if item.value not in (0.0, 1.0):
            return f"value: got {item.value!r}, must be 0 or 1"
        if self._state.noted(request_id) is None:
            return f"request_id: got {request_id!r}, must be a transaction that was decided or loaded before"
        return self._times.wrong(microseconds(item.event_time))
