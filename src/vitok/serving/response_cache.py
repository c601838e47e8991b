"""A cache of a model's answers by row: exact, bounded in bytes, and off where it costs more than it saves.

The rows of one turn are looked up in one compiled call. Rows that are the same within a turn are one run of the model.
A row is kept whole and compared byte by byte, so that no digest can ever confuse two of them: NaN equals a NaN of the
same bits, and -0.0 is another row than 0.0. What is kept belongs to one version; when another one answers, all of it
goes at once. Admission is W-TinyLFU, so that a scan does not wash out what is asked for often.
"""

import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitok.clock import Clock, SystemClock, duration
from vitok.errors import InvalidInput
from vitok.serving.queues import ServiceCurve

Outputs = Mapping[str, np.ndarray]

_FEWEST_SLOTS = 16
_SLOT_BYTES = 8 + 8 + 8 + 1 + 16 + 16  # hash, time, links, ring, hash table, sketch: the last two at their largest
_TRIAL_ROWS = 8192
_LONGEST_PAUSE = 64
_WINDOW, _PROTECTED = 0.01, 0.8


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    """What a response cache has done so far.

    Attributes:
        rows: Rows that were looked up.
        hits: Rows that were answered from it.
        coalesced: Rows that shared the run of an equal row of their turn.
        passed: Rows that went by while it was off.
        entries: Answers that it holds.
        evicted: Answers that made room, or were not admitted.
        expired: Answers that were too old when they were asked for.
        size: Bytes that it takes.
        max_bytes: Bytes that it may take.
        probe_us: Microseconds that looking up and keeping a row takes, as last measured; NaN before.
        model_us: Microseconds that the model takes for a run of one row, as last measured; NaN before.
        on: Whether it is looked into at present.
        reason: Why it is off, or on.

    Example:
        >>> print(ResponseCache(max_bytes=1 << 20, ttl="1m").report)
        on: not tried yet; 0 rows, 0 hits (0 %), 0 coalesced; 0 answers in 0 of 1,048,576 bytes
    """

    rows: int
    hits: int
    coalesced: int
    passed: int
    entries: int
    evicted: int
    expired: int
    size: int
    max_bytes: int
    probe_us: float
    model_us: float
    on: bool
    reason: str

    @property
    def hit_ratio(self) -> float:
        """Share of the rows looked up that were answered from the cache; 0 where there was none."""
        return self.hits / self.rows if self.rows else 0.0

    def __str__(self) -> str:
        return (
            f"{'on' if self.on else 'off'}: {self.reason}; {self.rows:,} rows, {self.hits:,} hits "
            f"({100 * self.hit_ratio:.3g} %), {self.coalesced:,} coalesced; {self.entries:,} answers in "
            f"{self.size:,} of {self.max_bytes:,} bytes"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """Answers to the rows of one turn.

    Attributes:
        outputs: Each output by name, n rows.
        ran: Shape (n,): False for the rows that the cache answered, which cost nothing.
    """

    outputs: dict[str, np.ndarray]
    ran: NDArray[np.bool_]


class ResponseCache:
    """Keeps the answers of one model that takes a matrix of rows, for as long as one version answers.

    It may be used by several threads. While the model runs it is not locked. An exception of the model goes through,
    and nothing is kept of that turn.

    Args:
        max_bytes: Most bytes that all of it may take: rows, answers, tables and sketch.
        ttl: How long an answer is good, such as `"10m"`.
        measured: Whether it compares what it costs with what it saves, every 8,192 rows, switches itself off where
            it costs more, and tries again after a pause that doubles up to 64 times.
        clock: Tells how old an answer is. Where it goes back, answers from its future are not used.
        timer: Nanoseconds, for `measured`.

    Raises:
        InvalidInput: If `max_bytes` or `ttl` is out of its range.

    Example:
        >>> cache = ResponseCache(max_bytes=1 << 20, ttl="1m")
        >>> def model(rows):
        ...     print("runs", len(rows))
        ...     return {"sum": rows.sum(axis=1)}
        >>> cache.answer("sums/1", np.array([[1.0, 2.0], [3.0, 4.0]]), model).outputs["sum"]
        runs 2
        array([3., 7.])
        >>> served = cache.answer("sums/1", np.array([[3.0, 4.0], [5.0, 6.0], [5.0, 6.0]]), model)
        runs 1
        >>> served.outputs["sum"], served.ran
        (array([ 7., 11., 11.]), array([False,  True,  True]))
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        ttl: str | int,
        measured: bool = True,
        clock: Clock | None = None,
        timer: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        if max_bytes < 1:
            raise InvalidInput("max_bytes", max_bytes, "be at least 1")
        self.max_bytes = max_bytes
        self.ttl = duration(ttl)
        self.measured = measured
        self._clock = clock or SystemClock()
        self._timer = timer
        self._lock = threading.Lock()
        self._owner: object = None
        self._entries: _Entries | None = None
        self._on, self._reason = True, "not tried yet"
        self._rows = self._hits = self._coalesced = self._passed = self._evicted = self._expired = 0
        self._curve = ServiceCurve(fixed_ns=0.0, row_ns=0.0)
        self._learned = False
        self._trial = [0, 0, 0.0]  # rows, nanoseconds of the cache, nanoseconds that it saved
        self._pause = 1
        self._rest = 0
        self._probe_us = self._model_us = math.nan

    def answer(self, owner: object, X: np.ndarray, run: Callable[[np.ndarray], Outputs]) -> Served:
        """Answers rows: from the cache where it knows them, and by one run of the model on the rest.

        Args:
            owner: The version that answers, such as the `Runtime` itself; another one than before empties the cache.
            X: Shape (n, n_features), float32 or float64, any n.
            run: Gives the outputs for some rows of X, each with as many rows; not called where there are none.
        """
        n = len(X)
        if not self._on or not n:
            if n and self._passing(n):
                return Served(dict(run(X)), np.ones(n, np.bool_))
            if not n:
                return Served(dict(run(X)), np.ones(0, np.bool_))
        timer = self._timer
        started = timer()
        words = _words(X)
        with self._lock:
            if self._owner is not owner and self._owner != owner:
                self._clear(owner)
            entries = self._entries
            probed = None if entries is None else entries.probe(words, self._clock.now(), self.ttl)
        if entries is None or probed is None or not entries.fits(words):
            return self._first(owner, X, words, run)
        found, source, asked = probed[0], probed[2], probed[3]
        spent = timer() - started
        model_ns = 0
        outputs: Outputs | None = None
        fresh: np.ndarray | None = None
        if len(asked):
            started = timer()
            outputs = run(X if len(asked) == n else X[asked])
            model_ns = timer() - started
        started = timer()
        if outputs is not None:
            fresh = entries.packed(outputs, len(asked))
            if fresh is None:
                # The model gives something else than it did: the whole turn must come from it.
                with self._lock:
                    self._clear(owner)
                return Served(dict(run(X)), np.ones(n, np.bool_))
            with self._lock:
                if self._entries is entries:
                    entries.keep(words, fresh, self._clock.now(), probed)
        ran = source >= 0
        given = dict(outputs) if outputs is not None and len(asked) == n else entries.unpacked(found, fresh, source)
        spent += timer() - started
        self._account(n, n - int(ran.sum()), len(asked), spent, model_ns)
        return Served(given, ran)

    @property
    def on(self) -> bool:
        """Whether it is looked into at present."""
        return self._on

    @property
    def report(self) -> CacheReport:
        """What it has done so far."""
        with self._lock:
            entries = self._entries
            return CacheReport(
                rows=self._rows,
                hits=self._hits,
                coalesced=self._coalesced,
                passed=self._passed,
                entries=entries.count if entries else 0,
                evicted=self._evicted + (entries.evicted if entries else 0),
                expired=self._expired + (entries.expired if entries else 0),
                size=entries.size if entries else 0,
                max_bytes=self.max_bytes,
                probe_us=self._probe_us,
                model_us=self._model_us,
                on=self._on,
                reason=self._reason,
            )

    def clear(self) -> None:
        """Forgets all answers."""
        with self._lock:
            self._clear(self._owner)

    def _clear(self, owner: object) -> None:
        if self._entries is not None:
            self._evicted += self._entries.evicted
            self._expired += self._entries.expired
        self._entries = None
        self._owner = owner

    def _passing(self, n: int) -> bool:
        # Off: nothing but this is done for a turn.
        with self._lock:
            if self._rest > n:
                self._rest -= n
                self._passed += n
                return True
            self._on, self._reason = True, "tries again"
            self._trial = [0, 0, 0.0]
        return False

    def _first(self, owner: object, X: np.ndarray, words: np.ndarray, run: Callable[[np.ndarray], Outputs]) -> Served:
        # How long an answer is shows with the first one.
        outputs = dict(run(X))
        with self._lock:
            if self._owner is owner or self._owner == owner:
                made = _Entries.sized(words, outputs, self.max_bytes)
                if made is None:
                    self._on = False
                    self._reason = "an answer has no fixed number of bytes, or 16 of them are more than max_bytes"
                    self._rest = 1 << 62
                self._entries = made
                if made is not None:
                    now = self._clock.now()
                    probed = made.probe(words, now, self.ttl)
                    if probed is not None:
                        picked = {name: values[probed[3]] for name, values in outputs.items()}
                        fresh = made.packed(picked, len(probed[3]))
                        if fresh is not None:
                            made.keep(words, fresh, now, probed)
            self._rows += len(X)
        return Served(outputs, np.ones(len(X), np.bool_))

    def _account(self, n: int, hits: int, asked: int, spent: int, model_ns: int) -> None:
        with self._lock:
            self._rows += n
            self._hits += hits
            self._coalesced += n - hits - asked
            if not self.measured:
                self._reason = "not measured"
                return
            if asked:
                self._curve.learn(asked, model_ns)
                self._learned = True
            saved = self._curve.expected_ns(n) - (self._curve.expected_ns(asked) if asked else 0.0)
            trial = self._trial
            trial[0] += n
            trial[1] += spent
            trial[2] += max(saved, 0.0)
            if trial[0] >= _TRIAL_ROWS:
                self._judge(trial[0], trial[1], trial[2])

    def _judge(self, rows: float, spent: float, saved: float) -> None:
        self._probe_us = spent / rows / 1e3
        if self._learned:
            self._model_us = self._curve.expected_ns(1) / 1e3
        self._trial = [0, 0, 0.0]
        told = f"a row costs {spent / rows / 1e3:.3g} us and saves {saved / rows / 1e3:.3g}"
        self._on = saved >= spent
        self._reason = told
        if self._on:
            self._pause = 1
        else:
            self._rest = self._pause * _TRIAL_ROWS
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)


_Probed = tuple[np.ndarray, np.ndarray, NDArray[np.int64], NDArray[np.int64]]


class _Entries:
    # The answers of one version: tables of a fixed size, made once.
    def __init__(self, slots: int, words: np.ndarray, layout: list[tuple[str, np.dtype, tuple[int, ...], int]]) -> None:
        from vitok.serving import cache_kernels

        self._kernels = cache_kernels
        self._layout = layout
        self._seed = np.uint64(secrets.randbits(63) | 1)
        table = np.full(1 << (2 * slots - 1).bit_length(), -1, np.int32)
        hashes, stored = np.empty(slots, np.uint64), np.empty(slots, np.int64)
        keys = np.empty((slots, words.shape[1]), words.dtype)
        values = np.empty((slots, sum(part[3] for part in layout)), np.uint8)
        links = np.zeros((2, slots + 3), np.int32)
        links[:, slots:] = np.arange(slots, slots + 3)
        links[1, :slots] = np.arange(1, slots + 1)  # all are free
        window = max(1, round(_WINDOW * slots))
        main = slots - window
        self._state = np.array([0, 0, 0, 0, 0, 0, 0, window, int(_PROTECTED * main), main], np.int64)
        sketch = np.zeros(1 << (slots - 1).bit_length(), np.uint64)
        self._tables = (table, hashes, keys, values, stored, links, self._state, np.empty(slots, np.uint8), sketch)
        self.size = sum(part.nbytes for part in self._tables)
        # Loaded now, so that the first turn that is measured does not pay for it.
        none = np.empty((0, values.shape[1]), np.uint8)
        cache_kernels.spread(none, np.empty(0, np.int64), none)

    @classmethod
    def sized(cls, words: np.ndarray, outputs: Outputs, max_bytes: int) -> "_Entries | None":
        layout = []
        for name, values in outputs.items():
            if values.dtype.hasobject or len(values) != len(words):
                return None
            shape = values.shape[1:]
            layout.append((name, values.dtype, shape, values.dtype.itemsize * math.prod(shape)))
        slot = words.shape[1] * words.itemsize + sum(part[3] for part in layout) + _SLOT_BYTES
        slots = min((max_bytes - 256) // slot, (1 << 30) - 1)
        return cls(slots, words, layout) if slots >= _FEWEST_SLOTS else None

    @property
    def count(self) -> int:
        return int(self._state[:3].sum())

    @property
    def evicted(self) -> int:
        return int(self._state[self._kernels.EVICTED])

    @property
    def expired(self) -> int:
        return int(self._state[self._kernels.EXPIRED])

    def fits(self, words: np.ndarray) -> bool:
        keys = self._tables[2]
        return words.dtype == keys.dtype and words.shape[1] == keys.shape[1]

    def probe(self, words: np.ndarray, now: int, ttl: int) -> _Probed | None:
        if not self.fits(words):
            return None
        n = len(words)
        scratch = np.empty(1 << (2 * n - 1).bit_length(), np.int32)
        found = np.empty((n, self._tables[3].shape[1]), np.uint8)
        hashes, source, asked = np.empty(n, np.uint64), np.empty(n, np.int64), np.empty(n, np.int64)
        runs = self._kernels.probe(words, now, ttl, self._seed, *self._tables, scratch, found, hashes, source, asked)
        return found, hashes, source, asked[:runs]

    def keep(self, words: np.ndarray, fresh: np.ndarray, now: int, probed: _Probed) -> None:
        self._kernels.keep(words, fresh, now, *self._tables, probed[1], probed[3])

    def packed(self, outputs: Outputs, n: int) -> np.ndarray | None:
        fresh = np.empty((n, self._tables[3].shape[1]), np.uint8)
        if len(outputs) != len(self._layout):
            return None
        at = 0
        for name, kind, shape, width in self._layout:
            values = outputs.get(name)
            if values is None or values.dtype != kind or values.shape != (n, *shape):
                return None
            fresh[:, at : at + width] = np.ascontiguousarray(values).reshape(n, -1).view(np.uint8).reshape(n, width)
            at += width
        return fresh

    def unpacked(self, found: np.ndarray, fresh: np.ndarray | None, source: NDArray[np.int64]) -> dict[str, np.ndarray]:
        if fresh is not None:
            self._kernels.spread(fresh, source, found)
        outputs, at = {}, 0
        for name, kind, shape, width in self._layout:
            outputs[name] = found[:, at : at + width].copy().view(kind).reshape(len(found), *shape)
            at += width
        return outputs


def _words(X: np.ndarray) -> np.ndarray:
    # Rows as whole numbers, so that what is compared are bits.
    X = np.ascontiguousarray(X)
    width = X.shape[1] * X.itemsize
    return X.view(np.uint64 if width % 8 == 0 else np.uint32)
