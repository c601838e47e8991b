"""From bytes to accepted transactions: what is well formed, keeps the contract, and has not been decided before."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from vitok import contracts, ids
from vitok.serving import UNDECODABLE, HotRequest, Reply, from_decode_error, problem
from vitok.serving.tracing import trace_id_of
from vitok.systems.fraud.messages import Transaction, fingerprint, microseconds
from vitok.systems.fraud.timekeeping import Timekeeper

CONTRACT = Path(__file__).with_name("transactions.odcs.yaml")
_BROKEN = "The request breaks the contract"


class Accepted:
    """The requests of one turn: accepted transactions by columns, and what is to be said to the others.

    Attributes:
        index: Place of each accepted transaction in the turn.
        arrived: When its request came, nanoseconds of `time.perf_counter_ns`.
        tenant: Whose request it is, where the guard has found that out; else "".
        trace_id: The trace that it belongs to, 32 hex digits; "" where it has none.
        rows: The transactions as the features take them.
        notes: What is noted with each, by transaction.
        repeated: Place in the turn to transaction, where it was decided before or comes twice in the turn.
        refused: Place in the turn to the answer, where a request cannot be taken.
    """

    __slots__ = (
        "amount",
        "arrived",
        "customer",
        "decision_id",
        "event_time",
        "index",
        "notes",
        "refused",
        "repeated",
        "rows",
        "tenant",
        "terminal",
        "trace_id",
        "transaction_id",
    )

    def __init__(self) -> None:
        self.index: list[int] = []
        self.arrived: list[int] = []
        self.decision_id: list[bytes] = []
        self.transaction_id: list[str] = []
        self.event_time: list[int] = []
        self.customer: list[str] = []
        self.terminal: list[str] = []
        self.amount: list[float] = []
        self.tenant: list[str] = []
        self.trace_id: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.notes: dict[str, bytes] = {}
        self.repeated: dict[int, str] = {}
        self.refused: dict[int, Reply] = {}

    def __len__(self) -> int:
        """How many were accepted."""
        return len(self.index)

    def begin(self, traces: Mapping[int, int]) -> None:
        """Notes the trace that a request belongs to, also where it begins here.

        Args:
            traces: Place in the turn to trace id.
        """
        if traces:
            for at, place in enumerate(self.index):
                if place in traces:
                    self.trace_id[at] = f"{traces[place]:032x}"


class Intake:
    """Reads the requests of a turn; a wrong one never harms its neighbours.

    Args:
        times: Says which moments an event may have.
        quarantine: Keeps what breaks the contract.
        noted: Returns what was noted with a transaction, or None where it is new.
        count: Counts what happened.
    """

    def __init__(
        self,
        times: Timekeeper,
        quarantine: contracts.Quarantine,
        *,
        noted: Callable[[str], bytes | None],
        count: Callable[[str], None],
    ) -> None:
        self._times = times
        self._quarantine = quarantine
        self._noted = noted
        self._count = count
        self._decode = msgspec.json.Decoder(Transaction).decode
        self._broken = contracts.load(CONTRACT).row_checker("transactions")

    def read(self, requests: Sequence[HotRequest]) -> Accepted:
        """Parts the requests of a turn into accepted, repeated and refused ones."""
        found = Accepted()
        for place, request in enumerate(requests):
            refusal = self._take(request, place, found)
            if refusal is not None:
                found.refused[place] = refusal
        n = len(found.index)
        if n:
            found.decision_id = ids.uuid7s(n)
            for transaction_id, decision_id in zip(found.transaction_id, found.decision_id, strict=True):
                found.notes[transaction_id] = decision_id + found.notes[transaction_id]
        return found

    def _take(self, request: HotRequest, place: int, found: Accepted) -> Reply | None:
        try:
            item = self._decode(request.body)
        except UNDECODABLE as error:
            self._count("rejected")
            return from_decode_error(error, request.body)
        transaction_id, customer, terminal = str(item.transaction_id), str(item.customer_id), str(item.terminal_id)
        row: dict[str, Any] = {
            "transaction_id": transaction_id,
            "event_time": item.event_time,
            "customer_id": customer,
            "terminal_id": terminal,
            "amount": item.amount,
        }
        broken = self._broken(row)
        if broken:
            self._count("rejected")
            reason = "; ".join(violation.message for violation in broken)
            self._quarantine.put_row(request.body, reason, now=self._times.now())
            errors = [{"field": violation.field, "detail": violation.message} for violation in broken]
            return problem(422, _BROKEN, reason, field=broken[0].field, errors=errors)
        moment = microseconds(item.event_time)
        wrong = self._times.wrong(moment)
        if wrong:
            self._count("rejected")
            return problem(422, _BROKEN, wrong, field="event_time")
        mark = fingerprint(moment, customer, terminal, item.amount)
        # A note of this turn has no decision id in front yet.
        known = found.notes.get(transaction_id)
        before = known[:8] if known is not None else self._mark(transaction_id)
        if before is not None:
            if before != mark:
                self._count("conflicts")
                detail = f"transaction_id: {transaction_id!r} was seen before with other contents"
                return problem(409, "Conflict", detail, field="transaction_id")
            self._count("repeated")
            found.repeated[place] = transaction_id
            return None
        self._times.advance(moment)
        found.index.append(place)
        found.arrived.append(request.arrived)
        found.transaction_id.append(transaction_id)
        found.event_time.append(moment)
        found.customer.append(customer)
        found.terminal.append(terminal)
        found.amount.append(item.amount)
        found.tenant.append(request.tenant)
        found.trace_id.append(trace_id_of(request))
        found.rows.append(row)
        found.notes[transaction_id] = mark + terminal.encode()
        return None

    def _mark(self, transaction_id: str) -> bytes | None:
        known = self._noted(transaction_id)
        return None if known is None else known[16:24]
