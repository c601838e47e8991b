"""Counting what a service serves without making it wait: vectors are noted at once, counted and written beside it.

A request costs one entry in a queue. A thread takes the queue down, adds it to the statistics of the hour and writes
those to a store now and then, when the hour is over and at the end; a process that is killed loses what it served
since it last wrote.
"""

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vitok.clock import HOUR, SECOND, Clock, SystemClock, duration
from vitok.engines import KeyValueStore, open_store
from vitok.errors import InvalidInput, StoreError
from vitok.features.definitions import FeatureSet
from vitok.features.served import ServedStatistics, expired
from vitok.features.vectors import MISSING, Vectors
from vitok.features.views import Embedding
from vitok.stats import FrozenEdges

AGE = ".age_seconds"
_TURN_S = 0.5
_MOST_WAITING = 2_000_000  # values of one feature set that wait to be counted, 16 MB: then a request counts them
_AT_ONCE = 256  # entries put together, so that a thread that answers is not held up
_ANY_CELL = FrozenEdges(edges=(), centers=(np.nan, np.nan, 0.0, np.nan), scale=1.0)


class _Served(NamedTuple):
    now: int
    vectors: Vectors
    times: Sequence[int] | None


class ServedSet:
    """Counts the vectors of one feature set; `ServedWriter.of` makes it.

    Beside the features it counts how old the values of each view were, in seconds, under the view's name and
    `".age_seconds"`; a view that had no row counts as a missing age. Embeddings do not age and are left out.
    """

    def __init__(self, make: Callable[[], ServedStatistics], views: Sequence[tuple[int, str]], clock: Clock) -> None:
        self._make = make
        self._columns = [place for place, _ in views]
        self._clock = clock
        self._waiting: deque[_Served] = deque()
        self._n_waiting = 0
        self._counting = threading.Lock()
        self.statistics = make()
        self.generation = 0
        self.dirty = False

    def add(self, vectors: Vectors, times: Sequence[int] | None = None) -> None:
        """Notes vectors that are served now; safe from any thread, and the arrays must not be changed afterwards.

        Args:
            vectors: What was served.
            times: When the questions were asked, microseconds, as ages are counted from then; None for now.
        """
        self._waiting.append(_Served(self._clock.now(), vectors, times))
        # Threads may miss each other's additions here: it is a bound on memory, not a count.
        self._n_waiting += vectors.values.size
        if self._n_waiting > _MOST_WAITING:
            self.drain()

    def drain(self) -> None:
        """Counts what waits."""
        with self._counting:
            self._n_waiting = 0
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _AT_ONCE))]
                for hour in dict.fromkeys(item.now // HOUR for item in batch):
                    matrix = self._matrix([item for item in batch if item.now // HOUR == hour])
                    self.statistics.add(matrix, hour * HOUR)
                self.dirty = True

    def _matrix(self, batch: Sequence[_Served]) -> np.ndarray:
        values = np.concatenate([item.vectors.values for item in batch])
        if not self._columns:
            return values
        counts = [len(item.vectors.values) for item in batch]
        asked = np.repeat(np.array([item.now for item in batch], np.int64), counts)
        begin = 0
        for item, n in zip(batch, counts, strict=True):
            if item.times is not None:
                asked[begin : begin + n] = item.times
            begin += n
        event_times = np.concatenate([item.vectors.event_times for item in batch])[:, self._columns]
        ages = (asked[:, None] - event_times) / SECOND
        status = np.concatenate([item.vectors.status for item in batch])[:, self._columns]
        ages[status == MISSING] = np.nan
        return np.concatenate((values, ages), axis=1, dtype=np.float64)

    def save(self, store: KeyValueStore, *, writer: str, hour: int, before: int) -> None:
        """Writes what was counted, and lets hours go that are over; deletes hours that begin before a moment."""
        # Not while the store is written: a disk that hangs must not hold up a request that counts.
        with self._counting:
            writes = self.statistics.writes(writer=f"{writer}.{self.generation}")
            self.dirty = False
        try:
            store.commit(writes)
        except StoreError:
            self.dirty = True
            raise
        with self._counting:
            over = not self.dirty and bool(self.statistics.hours) and self.statistics.hours[0] < hour
            if over:
                # What comes late is counted anew under another name, as a save replaces what its writer wrote before.
                self.statistics = self._make()
                self.generation += 1
        if over:
            store.commit(expired(store, before=before))


class ServedWriter:
    """Keeps what feature sets served, by the hour, in a store; failures are counted and told, never raised.

    Args:
        url: Address of a store of bytes, such as `"lmdb://.vitok/fraud/served"`; several processes may write it.
        every: How often it is written.
        keep: How long an hour is kept.
        writer: Name of this process among those that write; a random one by default.
        tell: Gets a sentence when the store fails and when it works again.
        clock: Tells the present.

    Example:
        >>> import numpy as np
        >>> from vitok.features import Entity, Latest, Source
        >>> limits = Latest(
        ...     name="account", entity=Entity("customer", "id"), source=Source("accounts"), columns=("limit",)
        ... )
        >>> features = FeatureSet(views=(limits,))
        >>> zero = np.zeros((1, 1), np.uint8)
        >>> with ServedWriter("memory://served-example") as writer:
        ...     served = writer.of("credit", features)
        ...     served.add(
        ...         Vectors(names=features.names, values=np.array([[500.0]]), event_times=np.array([[0]]),
        ...                 status=zero, source=zero, views=("account",)), times=[60_000_000])
        >>> (writer.n_saved > 0, writer.n_failed, served.statistics.names)
        (True, 0, ('account_limit', 'account.age_seconds'))
    """

    def __init__(
        self,
        url: str,
        *,
        every: str | int = "10s",
        keep: str | int = "90d",
        writer: str = "",
        tell: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        self.url = url
        self.n_saved = self.n_failed = 0
        self.last_error = ""
        self._every_s = duration(every) / SECOND
        self._keep = duration(keep)
        if self._keep < 2 * HOUR:
            raise InvalidInput("keep", keep, "be at least 2h")
        self._writer = writer or uuid.uuid4().hex[:12]
        self._tell = tell
        self._clock = clock or SystemClock()
        self._sets: list[ServedSet] = []
        self._store: KeyValueStore | None = None
        self._hour = self._clock.now() // HOUR
        self._saved_at = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def of(self, name: str, features: FeatureSet, *, edges: "dict[str, FrozenEdges] | None" = None) -> ServedSet:
        """Returns what counts one feature set.

        Args:
            name: Name of the set; kept with the content hash of the definitions.
            features: The definitions.
            edges: Frozen edges by feature, such as those of the model's reference; others have no histogram.
        """
        views = [(place, view.name) for place, view in enumerate(features.views) if not isinstance(view, Embedding)]
        names = [*features.names, *(view + AGE for _, view in views)]
        about = f"{name} {features.version}"
        frozen = None if not edges else [edges.get(item, _ANY_CELL) for item in names]
        made = ServedSet(lambda: ServedStatistics(names, edges=frozen, about=about), views, self._clock)
        self._sets.append(made)
        return made

    def start(self) -> None:
        """Begins to count and write in a thread of its own."""
        self._thread = threading.Thread(target=self._work, name="served", daemon=True)
        self._thread.start()

    def turn(self) -> None:
        """Counts what waits; writes where the time has come or an hour is over."""
        for item in self._sets:
            item.drain()
        hour, now = self._clock.now() // HOUR, time.monotonic()
        if hour != self._hour or now - self._saved_at >= self._every_s:
            self._hour, self._saved_at = hour, now
            self.save()

    def save(self) -> bool:
        """Writes what was counted and not yet written; says whether all of it was."""
        hour = self._hour * HOUR
        try:
            for item in self._sets:
                over = bool(item.statistics.hours) and item.statistics.hours[0] < hour
                if item.dirty or over:
                    item.save(self._opened(), writer=self._writer, hour=hour, before=hour - self._keep)
                    self.n_saved += 1
        except StoreError as error:
            self.n_failed += 1
            if not self.last_error:
                self._tell(f"what is served is counted but cannot be kept: {error}; trying again")
            self.last_error = str(error)
            return False
        if self.last_error:
            self._tell("what is served is kept again")
            self.last_error = ""
        return True

    def close(self) -> None:
        """Writes what there is and ends the thread; what cannot be written is lost, and told."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for item in self._sets:
            item.drain()
        self._hour = self._clock.now() // HOUR
        if not self.save():
            self._tell(f"the last counts of what was served are lost: {self.last_error}")
        for name in ("sync", "close"):
            getattr(self._store, name, lambda: None)()

    def __enter__(self) -> "ServedWriter":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> KeyValueStore:
        if self._store is None:
            self._store = open_store(self.url)
        return self._store

    def _work(self) -> None:
        # The kernel is compiled, or loaded, before the first request waits behind it.
        warm = ServedStatistics(["warm"])
        warm.add(np.zeros((1, 1)), 0)
        while not self._stop.wait(_TURN_S):
            self.turn()
