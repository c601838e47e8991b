"""Checks the batches of a stream by the rules of a table, with one memory: keys, counts and newest times."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from vitok.contracts import deliveries, measures
from vitok.contracts.batch import (
    Circumstances,
    Repeats,
    counted,
    fulfilled,
    measured,
    moment,
    report,
    table_result,
)
from vitok.contracts.contract import Contract, Table
from vitok.contracts.keys import KeyMemory
from vitok.contracts.plans import BROKEN, PLACE, PREFIX, Counts, Plan
from vitok.contracts.references import key_frames, refuse_names
from vitok.contracts.report import CheckReport, PeriodReport, RuleResult
from vitok.contracts.sources import HASH, repeated_rows
from vitok.errors import Conflict, InvalidInput

if TYPE_CHECKING:
    import datetime as dt

    from vitok.contracts.contract import Reference

    Batch = pl.DataFrame | Any

_WHOLE_ONLY = "is known of a whole table only, not of a stream"


class _Totals(msgspec.Struct, kw_only=True):
    """What was counted in one period."""

    start: int
    n_rows: int = 0
    n_rejected: int = 0
    n_repeated: int = 0
    n_clean: int = 0
    metrics: dict[str, int] = {}
    measures: list[dict[str, Any]] = []


class _State(msgspec.Struct, kw_only=True):
    """What a stream remembers besides keys."""

    sequence: int = 0
    position: str = ""
    fields: list[list[str]] = []
    fingerprint: str = ""
    newest: dict[str, int] = {}
    arrived: int | None = None
    current: _Totals | None = None
    previous: _Totals | None = None


class BatchChecker:
    """Checks batch after batch; made by `Contract.batch_checker`.

    A batch counts, and its keys are known, when it is committed: check, put the accepted rows under the name of the
    batch where they belong, then `commit` with the position that the stream has reached. A process that is killed
    before the commit begins again at the last `position`, and gets the same rows accepted; nothing is accepted twice,
    and nothing is lost.

    Args:
        contract: The contract.
        table: One of its tables.
        keys: The memory; by default one of a day that ends with the process.
        references: Data of other tables, by name.

    Raises:
        Conflict: If the memory was kept for other keys of this table.

    Example:
        >>> import polars as pl
        >>> from vitok import contracts
        >>> checker = contracts.load('''
        ... apiVersion: v3.1.0
        ... kind: DataContract
        ... id: payments
        ... version: 1.0.0
        ... status: active
        ... schema:
        ...   - name: payments
        ...     properties:
        ...       - {name: id, logicalType: string, primaryKey: true}
        ... ''').batch_checker()
        >>> checker.check(pl.DataFrame({"id": ["a", "b"]}), now=0).n_accepted
        2
        >>> checker.commit()
        >>> checker.check(pl.DataFrame({"id": ["b", "c"]}), now=1).rejected["reason"].to_list()
        ["id: got 'b', must be unique; the first row with it is kept"]
    """

    def __init__(
        self,
        contract: Contract,
        table: Table,
        *,
        keys: KeyMemory | None = None,
        references: "Mapping[str, Reference] | None" = None,
    ) -> None:
        self.contract, self.table = contract, table
        self.keys = keys if keys is not None else KeyMemory()
        given = references or {}
        refuse_names(contract.tables, given)
        self._references = key_frames(table, given)
        self._plans: dict[tuple[tuple[str, pl.DataType], ...], Plan] = {}
        kept = self.keys.state(table.name)
        self._state = msgspec.json.decode(kept, type=_State) if kept else _State()
        fields = [list(key.fields) for key in table.keys]
        if kept and self._state.fields != fields:
            raise Conflict(
                f"the memory of keys was kept for the keys {self._state.fields} of {table.name}, and the contract has "
                f"{fields}. Begin with another folder"
            )
        if self._state.fingerprint != contract.fingerprint:
            # Numbers that were counted by other rules do not add up with new ones; keys and times do.
            for totals in (self._state.current, self._state.previous):
                if totals is not None:
                    totals.metrics, totals.measures = {}, []
            self._state.fields, self._state.fingerprint = fields, contract.fingerprint
        self._after = self._state
        self._pending: dict[bytes, None] = {}
        self._now = 0

    def check(self, batch: "Batch", *, now: int, arrived: int | None = None) -> CheckReport:
        """Checks a batch: the rules of rows, and uniqueness among it and all that the memory knows.

        Batches that were checked and not yet committed count as known.

        Args:
            batch: A polars DataFrame, or an Arrow RecordBatch or Table.
            now: Present time in microseconds from 1970 on.
            arrived: When the batch arrived, in microseconds; by default now.

        Returns:
            The report. What judges a whole delivery is in `period`.

        Raises:
            ContractBroken: As `Contract.check` does; then the batch counts for nothing.
            InvalidInput: If the batch is no table, or a time is not one.
            StoreError: If the memory cannot be read.
        """
        for name, value in (("now", now), ("arrived", arrived)):
            moment(name, value)
            if (value is None and name == "now") or (value is not None and value < 0):
                raise InvalidInput(name, value, "be microseconds since 1970-01-01 as an int, from 0 on")
        frame = _frame(batch)
        shape = tuple(frame.schema.items())
        plan = self._plans.get(shape)
        if plan is None:
            plan = self._plans[shape] = Plan(self.contract, self.table, frame.schema, self._references)
        marked = plan.marked(frame.lazy().with_row_index(PLACE)).collect()
        counts = plan.count_marked(marked, now)
        found, keys = self._repeats(plan, marked, counts, now)
        made = report(plan, frame.lazy(), "in-memory", counts, found=found, known=Circumstances(now=now), whole=False)
        self._count(plan, counts, made, now=now, arrived=now if arrived is None else arrived)
        self._pending.update(dict.fromkeys(keys))
        self._now = max(self._now, now)
        return made

    @property
    def position(self) -> str:
        """What the last commit was given: where a stream goes on after a restart; "" before the first."""
        return self._state.position

    def commit(self, *, position: str | None = None) -> None:
        """Remembers what was checked since the last commit, all at once.

        Args:
            position: How far the stream has come, such as an offset or the name of a file; it is remembered in the
                same moment as the keys.

        Raises:
            StoreError: If it cannot be written; then nothing was, and it may be tried again.
        """
        place = self._state.position if position is None else position
        state = msgspec.structs.replace(self._after, sequence=self._state.sequence + 1, position=place)
        self.keys.write(
            self._pending, self.table.name, msgspec.json.encode(state), now=self._now, sequence=state.sequence
        )
        self._state = self._after = state
        self._pending = {}

    def discard(self) -> None:
        """Forgets what was checked since the last commit."""
        self._after, self._pending = self._state, {}

    def period(
        self,
        *,
        now: int,
        finished: bool = False,
        expected_rows: int | None = None,
        volume_history: "pl.DataFrame | None" = None,
        day: "dt.date | None" = None,
    ) -> PeriodReport:
        """Judges the period as a whole: volume, shares, distributions, freshness, and what was promised by when.

        Args:
            now: Present time in microseconds.
            finished: Judges the period before the present one, which is complete; of the present one, too few rows
                are no fault yet.
            expected_rows: As `Contract.check` takes it, for a whole period.
            volume_history: As `Contract.check` takes it.
            day: As `Contract.check` takes it; by default the day on which the period begins, in UTC.

        Returns:
            The report. Rows that repeat a key which was accepted before count for nothing.
        """
        moment("now", now)
        start = now // self.keys.period * self.keys.period
        if finished:
            start -= self.keys.period
        kept = [item for item in (self._after.current, self._after.previous) if item is not None]
        totals = next((item for item in kept if item.start == start), _Totals(start=start))
        known = Circumstances.expecting(start, expected_rows, volume_history, day)
        n_rows = totals.n_rows - totals.n_repeated
        results = [
            *self._metric_results(totals, n_rows),
            *deliveries.volume(self.table, n_rows, known.expected_rows, known.basis, running=not finished),
            *self._promises(n_rows, now),
        ]
        return PeriodReport(
            contract=self.contract.name,
            version=self.contract.version,
            table=self.table.name,
            start=start,
            end=start + self.keys.period,
            n_rows=totals.n_rows,
            n_rejected=totals.n_rejected,
            results=tuple(results),
        )

    def _repeats(self, plan: Plan, marked: pl.DataFrame, counts: Counts, now: int) -> tuple[Repeats, list[bytes]]:
        """Finds rows whose key was there before, and the keys of the rows that are accepted."""
        repeated: dict[int, list[tuple[int, int]]] = {}
        accepted: list[tuple[int, bytes]] = []
        dropped: set[int] = set()
        for index, key in enumerate(self.table.keys):
            if not counts[f"key_{index}_n"]:
                continue
            parts = [plan.values[name].to_physical().alias(f"{PREFIX}part_{i}") for i, name in enumerate(key.fields)]
            rows = marked.filter(plan.compared(key)).select(PLACE, plan.hashed(key).alias(HASH), *parts)
            found = [
                self.keys.encoded(self.table.name, key.fields, value) for value in rows.drop(PLACE, HASH).iter_rows()
            ]
            known = self.keys.known(found, now=now)
            first: dict[bytes, int] = {}
            for place, bits, one, before in zip(rows[PLACE], rows[HASH], found, known, strict=True):
                if before or one in self._pending or first.setdefault(one, place) != place:
                    repeated.setdefault(index, []).append((place, bits))
                else:
                    accepted.append((place, one))
            if key.rule.severity != "warn":
                dropped.update(place for place, _ in repeated.get(index, ()))
        frames = {index: repeated_rows(rows) for index, rows in repeated.items()}
        return Repeats(keys=frames), [one for place, one in accepted if place not in dropped]

    def _count(self, plan: Plan, counts: Counts, made: CheckReport, *, now: int, arrived: int) -> None:
        before = self._after
        start = now // self.keys.period * self.keys.period
        current, previous = before.current, before.previous
        if current is None or start > current.start:
            previous = current if current is not None else previous
            current = _Totals(start=start)
        names = [name for name in counts if name.startswith(("metric_", "condition_"))]
        n_broken = int(counts[BROKEN] or 0)
        seen = [measured(counts, index) for index in range(len(self.table.measures))]
        totals = _Totals(
            start=current.start,
            n_rows=current.n_rows + made.n_rows,
            n_rejected=current.n_rejected + made.n_rejected,
            n_repeated=current.n_repeated + made.n_rejected - n_broken,
            n_clean=current.n_clean + made.n_rows - n_broken,
            metrics={name: current.metrics.get(name, 0) + int(counts[name] or 0) for name in names},
            measures=[
                measures.merged(item, one, two)
                for item, one, two in zip(self.table.measures, current.measures or [{}] * len(seen), seen, strict=True)
            ],
        )
        newest = dict(before.newest)
        for name in plan.promised:
            value = counts[f"newest_{name}"]
            if value is not None:
                newest[name] = max(newest.get(name, int(value)), int(value))
        self._after = msgspec.structs.replace(
            before,
            current=totals,
            previous=previous,
            newest=newest,
            arrived=max(arrived, before.arrived if before.arrived is not None else arrived),
        )

    def _metric_results(self, totals: _Totals, n_rows: int) -> list[RuleResult]:
        found = []
        # Shares are of the rows that came, repeats included: those were counted where they are null or invalid.
        n_came = totals.n_rows
        for index, metric in enumerate(self.table.metrics):
            if metric.name == "rowCount":
                continue
            if metric.name == "duplicateValues":
                words = f"the number of repeats {_WHOLE_ONLY}"
                fields = ",".join(metric.fields)
                found.append(
                    table_result(fields, metric.name, metric.wanted, metric.severity, "skipped", n_rows, 0, words)
                )
                continue
            found.append(counted(metric, totals.metrics.get(f"metric_{index}", 0), n_came))
        for index, condition in enumerate(self.table.conditions):
            if condition.comparison is not None:
                found.append(fulfilled(condition, totals.metrics.get(f"condition_{index}", 0), n_came))
        for query in self.table.queries:
            words = f"what a query gives {_WHOLE_ONLY}"
            found.append(table_result(query.field, "sql", query.wanted, query.severity, "skipped", n_rows, 0, words))
        for index, item in enumerate(self.table.measures):
            seen = totals.measures[index] if totals.measures else {}
            if item.name in measures.WHOLE_ONLY:
                holds, words = None, f"{item.label} {_WHOLE_ONLY}"
            else:
                holds, words = measures.judged(item, {"n": 0, "seen": None, **seen}, totals.n_clean)
            status = "skipped" if holds is None else deliveries.held(holds)
            found.append(
                table_result(item.field, item.label, item.wanted, item.severity, status, totals.n_clean, 0, words)
            )
        return found

    def _promises(self, n_rows: int, now: int) -> list[RuleResult]:
        fresh = [item for item in self.contract.freshness if item.table == self.table.name]
        coming = [item for item in self.contract.deliveries if item.table == self.table.name]
        newest = self._after.newest
        return [
            *(deliveries.freshness(item, newest.get(item.field), 0, n_rows, now) for item in fresh),
            *(
                deliveries.delivery(item, newest.get(item.field), 0, n_rows, now, self._after.arrived)
                for item in coming
            ),
        ]


def _frame(batch: object) -> pl.DataFrame:
    if isinstance(batch, pl.DataFrame):
        return batch
    import pyarrow as pa

    if isinstance(batch, pa.RecordBatch | pa.Table):
        found = pl.from_arrow(batch)
        if isinstance(found, pl.DataFrame):
            return found
    raise InvalidInput("batch", type(batch).__name__, "be a polars DataFrame or an Arrow RecordBatch or Table")
