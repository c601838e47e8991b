"""The state of the features: a checkpoint plus the logs after it, so that nothing is lost and nothing counts twice."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vitok import decisions
from vitok.clock import DAY
from vitok.decision import Outcome
from vitok.engines import LmdbStore, MemoryStore
from vitok.errors import StoreError
from vitok.features import FeatureSet
from vitok.features.warming import warm_up
from vitok.systems.fraud.features import online_features
from vitok.systems.fraud.intake import Accepted
from vitok.systems.fraud.label_events import Standing
from vitok.systems.fraud.messages import microseconds, note
from vitok.systems.fraud.timekeeping import Timekeeper

_AT_ONCE = 50_000
_LOG = logging.getLogger("vitok.fraud")


class FeatureState:
    """What is known of customers and terminals as of now.

    Args:
        home: Folder with the online store and the logs.
        features: The definitions.
        times: Is moved by what is read.
        positions: Returns how far each log has been written, by its name.
        checkpoint_every: Events between two checkpoints.
        count: Counts what happened.

    Attributes:
        recovered_events: How many events the last recovery read from the logs.

    Raises:
        StoreError: If another process owns the store, or it cannot be opened.
    """

    def __init__(
        self,
        home: Path,
        features: FeatureSet,
        times: Timekeeper,
        *,
        positions: Callable[[], Mapping[str, Sequence[int]]],
        checkpoint_every: int,
        count: Callable[[str], None],
    ) -> None:
        self._logs = home / "log"
        self._features = features
        self._times = times
        self._positions = positions
        self._every = checkpoint_every
        self._count = count
        self._since = 0
        self._store = LmdbStore(home / "online")
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._save: Future[None] | None = None
        self.recovered_events = 0
        rehearse(features)
        self.recover()

    def recover(self) -> None:
        """Reads the state of the last checkpoint and adds what the logs hold after it."""
        self._wait()
        self._online = online_features(self._store)
        self._times.advance(self._online.newest)
        positions = self._online.positions()
        self.recovered_events = 0
        tail = decisions.Tail(self._logs / "decisions", positions.get("decisions"))
        while (frame := tail.read(_AT_ONCE)) is not None:
            columns = ("request_id", "decision_id", "event_time", "customer_id", "terminal_id", "amount")
            rows = frame.select(columns).to_dicts()
            times = [microseconds(row["event_time"]) for row in rows]
            notes = [
                note(row["decision_id"], moment, row["customer_id"], row["terminal_id"], row["amount"])
                for row, moment in zip(rows, times, strict=True)
            ]
            self._times.advance(max(times, default=0))
            self._online.add_many("transactions", [row["request_id"] for row in rows], times, rows, notes=notes)
            self.recovered_events += len(rows)
        tail.close()
        tail = decisions.Tail(self._logs / "outcomes", positions.get("outcomes"))
        while (frame := tail.read(_AT_ONCE)) is not None:
            moments = (frame[name].to_physical() for name in ("event_time", "ingest_time"))
            rows = frame.select("request_id", "kind", "value", "source", "supersedes").with_columns(*moments).to_dicts()
            self._add([Outcome(**row) for row in rows])
            self.recovered_events += len(rows)
        tail.close()

    def noted(self, transaction_id: str) -> bytes | None:
        """Returns what was noted with a transaction, or None where it is not known."""
        return self._online.note("transactions", transaction_id)

    def labelled(self, transaction_id: str) -> bool:
        """Says whether a transaction has got a label."""
        return self._online.seen("labels", transaction_id)

    def serve(self, accepted: Accepted) -> tuple[np.ndarray, list[str]]:
        """Returns what is known of each transaction before it counts itself, in the order of arrival; then it counts.

        Returns:
            Values of shape (n, features), and how fresh those of each transaction are.
        """
        values = np.empty((len(accepted), len(self._features.names)))
        values[:, 0] = accepted.amount
        status = self._online.serve(
            "transactions",
            accepted.transaction_id,
            accepted.event_time,
            accepted.rows,
            values,
            notes=list(accepted.notes.values()),
        )
        self._features.add_on_demand(values, np.array(accepted.event_time, np.int64))
        return values, status

    def standing(self, transaction_id: str) -> Standing | None:
        """Returns where the label of a transaction stands; None where it has none, or one that came without a note."""
        noted = self._online.note("labels", transaction_id) if self.labelled(transaction_id) else None
        return None if noted is None else Standing.unpack(noted)

    def learn(self, outcomes: Sequence[Outcome]) -> None:
        """Adds outcomes to the features of their transactions' terminals, in the order of the log.

        The first outcome of a transaction is an event at its time; one that supersedes it adds the difference there
        (see `vitok.systems.fraud.label_events`). Where it is not known what it supersedes, since the history was loaded
        without `label_notes`, the features stay as they are, and `uncorrected_labels` counts it.
        """
        self._add(outcomes)
        self.grew(len(outcomes))

    def _add(self, outcomes: Sequence[Outcome]) -> None:
        first: dict[str, tuple[Standing, str]] = {}
        corrected: dict[str, Standing] = {}
        changes: list[tuple[str, Standing, dict[str, object]]] = []
        for outcome in outcomes:
            name = outcome.request_id
            noted = self.noted(name)
            if noted is None:
                continue
            self._times.advance(max(outcome.event_time, outcome.ingest_time))
            told = (outcome.value, outcome.event_time, outcome.source, outcome.ingest_time)
            terminal = noted[24:].decode()
            if not outcome.supersedes:
                first.setdefault(name, (Standing.first(*told), terminal))
                continue
            before = corrected.get(name) or self.standing(name)
            if before is None and name in first and not self.labelled(name):
                before = first[name][0]
            if before is None:
                self._count("uncorrected_labels")
                continue
            after = before.after(*told)
            if after is not None:
                corrected[name] = after
                changes.append((name, after, {"terminal_id": terminal, "is_fraud": after.value - before.value}))
        self._online.add_many(
            "labels",
            list(first),
            [standing.label_time for standing, _ in first.values()],
            [{"terminal_id": terminal, "is_fraud": standing.value} for standing, terminal in first.values()],
            notes=[standing.pack() for standing, _ in first.values()],
        )
        self._online.correct(
            "labels",
            [name for name, _, _ in changes],
            [standing.label_time for _, standing, _ in changes],
            [row for _, _, row in changes],
            notes=[standing.pack() for _, standing, _ in changes],
        )

    def grew(self, n: int) -> None:
        """Begins a checkpoint where it is due after n further events; it is written in the background."""
        self._since += n
        if self._since >= self._every and (self._save is None or self._save.done()):
            self.checkpoint()

    def checkpoint(self) -> None:
        """Begins a checkpoint."""
        self._wait()
        self._since = 0
        positions = {name: list(position) for name, position in self._positions().items()}
        self._save = self._saver.submit(self._online.save, self._online.begin_checkpoint(positions))

    def problem(self) -> str:
        """Says what is wrong with the store; empty where it answers."""
        try:
            self._store.get("meta", b"features")
        except StoreError as error:
            return str(error)
        return ""

    def close(self) -> None:
        """Saves a last checkpoint and lets the store go."""
        self.checkpoint()
        self._wait()
        self._saver.shutdown()
        self._store.close()

    def _wait(self) -> None:
        if self._save is not None:
            error = self._save.exception()
            if error is not None:
                self._count("checkpoint_failures")
                _LOG.error("a checkpoint could not be saved: %s", error)
            self._save = None


def rehearse(features: FeatureSet) -> None:
    """Serves transactions that nobody made from a state of its own, so that the first real ones do not wait.

    Args:
        features: The definitions.
    """
    warm_up(features)
    online, row = online_features(MemoryStore()), {"customer_id": "nobody", "terminal_id": "nowhere", "amount": 0.0}
    # A block of one row and one of several lie differently in memory, and are different kernels.
    for n in (1, 2):
        ids, times, values = [f"{n}-{i}" for i in range(n)], [DAY] * n, np.zeros((n, len(features.names)))
        online.serve("transactions", ids, times, [row] * n, values, notes=[b""] * n)
        features.add_on_demand(values, np.array(times))
