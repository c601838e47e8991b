"""The order in which decisions are learned and outcomes are heard, for a log with one writer and for one with several.

A log of one writer has an order. One that several processes write (`shared=True`) has an order for each of them and
none between them; there it is that of the ingest time, then of the decision's id (or the outcome's fields), and it is
known only up to a time by which all rows are promised to be in the log.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vitok.decisions.segments import LANE
from vitok.decisions.tail import Tail

if TYPE_CHECKING:
    import polars as pl

NEVER = -(2**62)
_BATCH = "batch of the reader"
_AT_ONCE = 65_536

Told: TypeAlias = tuple[int, str, str, int, float, str, bool]
"""Ingest time, request, kind, event time, value, source, supersedes."""


class DecisionOrder:
    """Reads decisions in the order in which they are learned, and knows where to begin again.

    In a shared log every decision that is not learned yet is held in memory: without the rows of all processes nobody
    knows which is next.

    Args:
        folder: Folder of the decision log.
        place: What `place` gave; None begins with the oldest.
    """

    def __init__(self, folder: str | Path, place: Mapping[str, Any] | None = None) -> None:
        self._tail = Tail(folder, (place["positions"] or None) if place else None)
        self._last = (place["last"][0], bytes.fromhex(place["last"][1])) if place else (NEVER, b"")
        self._start = self._positions()
        self._chunk: pl.DataFrame | None = None
        self._pool: list[pl.DataFrame] = []
        self._ready: pl.DataFrame | None = None
        # Of each batch that still has rows in memory, by its number: where the log was read from.
        self._starts: dict[int, list[list[int]]] = {}
        self._batches = 0

    @property
    def shared(self) -> bool:
        """Whether several processes may write the log."""
        return any(place.segment >= LANE for place in self._tail.positions)

    def read(self, most: int, until: int) -> "pl.DataFrame | None":
        """Returns the next decisions, after those that it returned before have all been learned; None for none.

        Args:
            most: At most so many rows.
            until: In a shared log only those with an ingest time up to this, in microseconds.
        """
        if self._chunk is not None:
            self._last = self._key(self._chunk.height - 1)
            self._chunk = None
        if not self.shared:
            self._start = self._positions()
            frame = self._tail.read(max_rows=most)
            # Only a look tells that others write as well.
            if not self.shared:
                self._chunk = frame
                return frame
            if frame is not None:
                self._hold(frame, self._start)
        return self._merged(most, until)

    def place(self, done: int) -> dict[str, Any]:
        """Returns where to begin again, for JSON, when `done` rows of the last `read` have been learned."""
        last = self._key(done - 1) if done else self._last
        place: dict[str, Any] = {"last": [last[0], last[1].hex()]}
        if not self.shared:
            if self._chunk is None:
                return {**place, "positions": self._positions()}
            # A place in a log keeps its meaning when rows are deleted; a number of rows behind it would not.
            return {**place, "positions": [list(item) for item in self._tail.behind(done)]}
        oldest = self._oldest(done)
        return {**place, "positions": self._positions() if oldest is None else self._starts[oldest]}

    def _oldest(self, done: int) -> int | None:
        """Returns the first batch of which rows are not learned yet, when `done` of the last `read` have been."""
        left = [frame for frame in (self._ready, *self._pool) if frame is not None]
        if self._chunk is not None:
            left.append(self._chunk.slice(done))
        return min((int(frame[_BATCH].min()) for frame in left if frame.height), default=None)  # type: ignore[arg-type]

    def _merged(self, most: int, until: int) -> "pl.DataFrame | None":
        import polars as pl

        while True:
            start = self._positions()
            frame = self._tail.read(max_rows=_AT_ONCE)
            if frame is None:
                break
            self._hold(frame, start)
        known = pl.col("ingest_time") <= pl.lit(until).cast(pl.Datetime("us", "UTC"))
        ready = [] if self._ready is None else [self._ready]
        come = [frame.filter(known) for frame in self._pool]
        if any(frame.height for frame in come):
            self._pool = [rest for frame in self._pool if (rest := frame.filter(~known)).height]
            self._ready = pl.concat([*ready, *come], how="diagonal_relaxed").sort("ingest_time", "decision_id")
        if self._ready is not None and self._ready.height:
            self._chunk, self._ready = self._ready.slice(0, most), self._ready.slice(most)
        oldest = self._oldest(0)
        self._starts = {} if oldest is None else {at: it for at, it in self._starts.items() if at >= oldest}
        return self._chunk

    def _hold(self, frame: "pl.DataFrame", start: list[list[int]]) -> None:
        import polars as pl

        time, identifier = self._last
        moment = pl.lit(max(time, 0)).cast(pl.Datetime("us", "UTC"))
        later = (pl.col("ingest_time") > moment) | (
            (pl.col("ingest_time") == moment) & (pl.col("decision_id") > pl.lit(identifier))
        )
        self._starts[self._batches] = start
        number = pl.lit(self._batches, pl.Int64).alias(_BATCH)
        self._batches += 1
        self._pool.append((frame if time == NEVER else frame.filter(later)).with_columns(number))

    def _key(self, row: int) -> tuple[int, bytes]:
        assert self._chunk is not None  # noqa: S101
        return int(self._chunk["ingest_time"].to_physical()[row]), self._chunk["decision_id"][row]

    def _positions(self) -> list[list[int]]:
        return [list(place) for place in self._tail.positions]


class OutcomeOrder:
    """Reads outcomes in the order in which they are heard, and knows where to begin again.

    Args:
        folder: Folder of the outcome log.
        place: What `place` gave; None begins with the oldest.
    """

    def __init__(self, folder: str | Path, place: Mapping[str, Any] | None = None) -> None:
        self._tail = Tail(folder, (place["positions"] or None) if place else None)
        self._held: list[Told] = [tuple(item) for item in place["held"]] if place else []

    def read(self, until: int, promised: int) -> tuple[list[Told], int]:
        """Returns the outcomes that were added, and how many of them have an ingest time up to `promised`.

        Args:
            until: In a shared log only those with an ingest time up to this, in microseconds; the others are held.
            promised: Time up to which all were said to be in the log before.
        """
        frame = self._tail.read()
        come: list[Told] = []
        if frame is not None:
            columns = ("request_id", "kind", "value", "source", "supersedes")
            times = [frame.get_column(name).to_physical().to_list() for name in ("event_time", "ingest_time")]
            for row in zip(*(frame.get_column(name).to_list() for name in columns), *times, strict=True):
                request, kind, value, source, supersedes, event, ingest = row
                come.append((ingest, request, kind, event, value, source, supersedes))
        late = sum(item[0] <= promised for item in come)
        if not any(place.segment >= LANE for place in self._tail.positions):
            return come, late
        waiting = sorted(self._held + come)
        n = sum(item[0] <= until for item in waiting)
        self._held = waiting[n:]
        return waiting[:n], late

    def place(self) -> dict[str, Any]:
        """Returns where to begin again, for JSON."""
        return {"positions": [list(place) for place in self._tail.positions], "held": self._held}
