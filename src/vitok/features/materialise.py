"""From the offline data to the online store: the newest row of each entity, its windows, its vectors.

A run takes up where the last one ended: at what became known after it, not at what happened after it, so that a late
row is met. How far a run came is kept in the store itself, after each chunk; a run that was killed goes on from there.
Writing a row twice changes nothing, and a row never replaces a newer one.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vitok.clock import DAY, Clock, SystemClock, duration, isoformat
from vitok.engines.row_store import Row, RowStore, open_rows
from vitok.errors import InvalidInput
from vitok.features.definitions import FeatureSet
from vitok.features.embeddings import VectorIndex
from vitok.features.notes import change_note, read_note
from vitok.features.rows import encode_key, layout_of, row_keys
from vitok.features.scans import Scan
from vitok.features.views import AnyView, Embedding, Latest, View

if TYPE_CHECKING:
    import polars as pl


class Progress(NamedTuple):
    """How far a run came: entities of a view done, of how many; -1 where nobody knows before the end."""

    view: str
    done: int
    of: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewReport:
    """What a run did to one view.

    Attributes:
        view: Its name.
        since: From when on rows became available that were looked at, in microseconds; None for all.
        until: Until when.
        entities: Entities that had news and are not forgotten.
        written: Of those, rows that were newer than the store's.
        forgotten: Entities left out because they are to be forgotten.
        newest: Event time of the newest row, in microseconds; -1 where there was none.
        chunks: Writes to the store.
        resumed: Whether the run went on from where another one was killed.
        seconds: How long it took.
    """

    view: str
    since: int | None
    until: int
    entities: int = 0
    written: int = 0
    forgotten: int = 0
    newest: int = -1
    chunks: int = 0
    resumed: bool = False
    seconds: float = 0.0

    def __str__(self) -> str:
        """Returns the report as one line."""
        since = "the beginning" if self.since is None else isoformat(self.since)
        left_out = f", {self.forgotten} forgotten" if self.forgotten else ""
        resumed = ", resumed" if self.resumed else ""
        return (
            f"{self.view}: {self.written} rows written of {self.entities} entities with news{left_out}; "
            f"{since} to {isoformat(self.until)}{resumed}; {self.seconds:.2f} s"
        )


@dataclasses.dataclass(frozen=True)
class MaterialiseReport:
    """What a run did.

    Attributes:
        views: One report a view; two where a killed run was finished first.
    """

    views: tuple[ViewReport, ...]

    @property
    def written(self) -> int:
        """Rows written, over all views."""
        return sum(view.written for view in self.views)

    def __str__(self) -> str:
        """Returns one line a view."""
        return "\n".join(map(str, self.views)) or "nothing to do"


def materialise(
    features: FeatureSet | AnyView,
    sources: Mapping[str, Any],
    store: RowStore | str,
    *,
    until: int,
    since: int | None = None,
    indexes: Mapping[str, VectorIndex] | None = None,
    overlap: str | int | None = None,
    lateness: str | int = "10m",
    keep: str | int = "",
    progress: Callable[[Progress], None] | None = None,
    chunk_entities: int = 20_000,
    clock: Clock | None = None,
) -> MaterialiseReport:
    """Takes a view, or all views of a set, to the online store.

    Args:
        features: The set or the view.
        sources: By name of the source: a frame, a Parquet file, a folder or pattern of such files, or a list of them.
        store: Where the rows go, or its address.
        until: Up to when rows count that became available, in microseconds; not after the present.
        since: From when on, in microseconds; by default from where the last run of the view ended, all at first.
        indexes: Indexes by `"name@version"`, for the embeddings.
        overlap: How far before `since` rows are looked at again. By default a day where a source has no ingest time
            (a row that comes later than that is not met), else nothing.
        lateness: As of the stream: how far behind the newest event of its key a question about windows may come.
        keep: How long after its event a row stays in the store, by the store's clock; "" for ever.
        progress: Told after each chunk.
        chunk_entities: Rows that are written together.
        clock: Tells the present.

    Returns:
        What was done, view by view.

    Raises:
        InvalidInput: If a source or an index is missing, a source breaks its rules, or `until` is yet to come.
        StoreError: If the store cannot be read or written, as when the disk is full; run it again to go on.

    Example:
        >>> import polars as pl
        >>> from vitok.features import Entity, Latest, Source
        >>> source = Source("accounts", ingest_time="known_at")
        >>> view = Latest(name="account", entity=Entity("customer", "id"), source=source, columns=("limit",))
        >>> rows = pl.DataFrame({"id": [7, 7], "event_time": [1, 2], "known_at": [9, 5], "limit": [1.0, 2.0]})
        >>> rows = rows.with_columns(pl.col("event_time", "known_at").cast(pl.Datetime("us", "UTC")))
        >>> report = materialise(view, {"accounts": rows}, "memory://materialise-example", until=6)
        >>> report.views[0].written, report.views[0].newest
        (1, 2)
        >>> materialise(view, {"accounts": rows}, "memory://materialise-example", until=9).written
        0
    """
    rows: RowStore = open_rows(store) if isinstance(store, str) else store
    now = (clock or SystemClock()).now()
    for name, moment in (("until", until), ("since", since)):
        if moment is not None and (isinstance(moment, bool) or not isinstance(moment, Integral)):
            raise InvalidInput(name, moment, "be whole microseconds since 1970", "vitok.clock.parse_time reads a text.")
    if not 0 <= until <= now:
        rule = f"be microseconds since 1970 and not after the present, {now} ({isoformat(now)})"
        raise InvalidInput("until", until, rule, "What becomes known until then would be missed by the next run.")
    if since is not None and not 0 <= since <= until:
        raise InvalidInput("since", since, f"be between 0 and until, {until} ({isoformat(until)})")
    if chunk_entities < 1:
        raise InvalidInput("chunk_entities", chunk_entities, "be at least 1")
    job = _Job(
        store=rows,
        sources=sources,
        indexes=indexes or {},
        overlap=None if overlap is None else duration(overlap) if overlap else 0,
        lateness=duration(lateness),
        keep=duration(keep) if keep else 0,
        progress=progress or (lambda _: None),
        chunk=chunk_entities,
    )
    views = features.views if isinstance(features, FeatureSet) else (features,)
    job.check(views)
    return MaterialiseReport(tuple(report for view in views for report in job.run(view, since, until)))


def watermark(store: RowStore, view: AnyView) -> int | None:
    """Returns up to when a view was taken to the store without a gap, in microseconds; None where it never was.

    Raises:
        StoreError: If the store cannot be read.
    """
    return read_note(store, progress_key(view))[0].get("watermark")


def progress_key(view: AnyView) -> bytes:
    """Returns the key of the record of a view's runs."""
    return b"{%progress}" + encode_key(view.name) + b"@" + view.version.encode()


def known_views(store: RowStore, entity: str) -> tuple[tuple[str, str], ...]:
    """Returns name and version of each view of an entity that was ever taken to the store.

    Args:
        store: The store.
        entity: Name of the entity.

    Raises:
        StoreError: If the store cannot be read.
    """
    note, _ = read_note(store, _views_key(entity))
    return tuple((name, version) for name, version in note.get("views", ()))


def forgotten_key(entity: str, key: str) -> bytes:
    """Returns the key of the record that says that an entity is to be forgotten: its hash, not its name."""
    import hashlib

    return (
        b"{%forgotten:"
        + hashlib.sha256(f"{entity}\0{key}".encode("utf-8", "surrogatepass")).hexdigest().encode()
        + b"}"
    )


def any_forgotten_key(entity: str) -> bytes:
    """Returns the key of the record that says that some entity of a kind is to be forgotten."""
    return b"{%forgotten}" + encode_key(entity)


def forgotten(store: RowStore, entity: str, keys: Sequence[str], at: int) -> np.ndarray:
    """Says which entities are to be forgotten still, shape (n,), bool.

    Args:
        store: The store.
        entity: Name of the entity.
        keys: Keys as texts.
        at: When, in microseconds.

    Raises:
        StoreError: If the store cannot be read.
    """
    out = np.zeros(len(keys), np.bool_)
    if read_note(store, any_forgotten_key(entity))[1]:
        records = [forgotten_key(entity, key) for key in keys]
        for place, row in enumerate(store.read(records)):
            if row is not None:
                note, _ = read_note(store, records[place])
                out[place] = at < note.get("until", 0)
    return out


def _views_key(entity: str) -> bytes:
    return b"{%views}" + encode_key(entity)


@dataclasses.dataclass(frozen=True)
class _Leg:
    # What one run is to do, and where a killed one stopped.
    since: int | None
    until: int
    last: Any = None

    def note(self, last: Any) -> dict[str, Any]:
        return {"since": self.since, "until": self.until, "last": last}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    store: RowStore
    sources: Mapping[str, Any]
    indexes: Mapping[str, VectorIndex]
    overlap: int | None
    lateness: int
    keep: int
    progress: Callable[[Progress], None]
    chunk: int

    def check(self, views: Sequence[AnyView]) -> None:
        for view in views:
            if isinstance(view, Embedding):
                if view.reference not in self.indexes:
                    raise InvalidInput(
                        "indexes", sorted(self.indexes), f"hold {view.reference!r}, of view {view.name!r}"
                    )
            elif view.source.name not in self.sources:
                known = sorted(self.sources)
                raise InvalidInput("sources", known, f"hold {view.source.name!r}, which view {view.name!r} reads")

    def run(self, view: AnyView, since: int | None, until: int) -> Iterator[ViewReport]:
        change_note(self.store, _views_key(view.entity.name), functools.partial(_with_view, view))
        for leg in self._legs(view, since, until):
            started = time.perf_counter()
            report = self._run_leg(view, leg)
            change_note(self.store, progress_key(view), functools.partial(_finished, leg))
            yield dataclasses.replace(report, seconds=time.perf_counter() - started)

    def _legs(self, view: AnyView, since: int | None, until: int) -> list[_Leg]:
        note, _ = read_note(self.store, progress_key(view))
        begun = _Leg(**note["leg"]) if "leg" in note else None
        if since is not None:
            # The same backfill again goes on; another one begins anew.
            return [begun if begun and (begun.since, begun.until) == (since, until) else _Leg(since, until)]
        mark = note.get("watermark")
        legs = []
        if begun and begun.since == mark and begun.until <= until:
            legs.append(begun)
            mark = begun.until
        if mark is None or mark < until:
            legs.append(_Leg(mark, until))
        return legs

    def _run_leg(self, view: AnyView, leg: _Leg) -> ViewReport:
        report = ViewReport(view=view.name, since=leg.since, until=leg.until, resumed=leg.last is not None)
        if isinstance(view, Embedding):
            return self._write_vectors(view, leg, report)
        since = leg.since
        if since is not None:
            overlap = self.overlap if self.overlap is not None else 0 if view.source.ingest_time else DAY
            since = max(0, since - overlap)
        with Scan(view.source, view, self.sources[view.source.name]) as scan:
            if isinstance(view, View):
                return self._write_windows(view, scan, since, leg, report)
            return self._write_newest(view, scan, since, leg, report)

    def _write_newest(self, view: Latest, scan: Scan, since: int | None, leg: _Leg, report: ViewReport) -> ViewReport:
        layout = layout_of(view)
        done = 0
        for frame in scan.newest(since, leg.until, after=leg.last, chunk=self.chunk):
            keys = frame["__key"].to_list()
            events = frame["__event"].to_numpy()
            # Without an ingest time the last run to look has the last word on rows of the same event time.
            ingests = frame["__ingest"].to_numpy() if view.source.ingest_time else np.full(len(frame), leg.until)
            values = layout.pack(_numbers(view, frame), frame["__deleted"].to_numpy())
            report = self._write(view, keys, events, ingests, values, leg, keys[-1], report)
            done += len(keys)
            self.progress(Progress(view.name, done, scan.count()))
        return report

    def _write_windows(self, view: View, scan: Scan, since: int | None, leg: _Leg, report: ViewReport) -> ViewReport:
        from vitok.features.state import Layout

        layout = Layout(view.plan, self.lateness)
        parts, first = (leg.last[0], leg.last[1]) if leg.last else (None, 0)
        counted = scan.parts(since, leg.until, view.longest + self.lateness)
        parts = parts or counted
        done = 0
        for part in range(first, parts):
            states = list(layout.backfill(view, scan.events(part, parts)))
            for at in range(0, len(states), self.chunk):
                keys, values, newest = (list(column) for column in zip(*states[at : at + self.chunk], strict=True))
                events = np.array(newest, np.int64)
                whole = at + self.chunk >= len(states)
                last = [parts, part + whole]
                report = self._write(view, keys, events, np.full(len(keys), leg.until), values, leg, last, report)
                done += len(keys)
                self.progress(Progress(view.name, done, -1))
        return report

    def _write_vectors(self, view: Embedding, leg: _Leg, report: ViewReport) -> ViewReport:
        index, layout = self.indexes[view.reference], layout_of(view)
        keys = list(index.keys())
        first = leg.last or 0
        for at in range(first, len(keys), self.chunk):
            chunk = keys[at : at + self.chunk]
            values = layout.pack_vectors(index.vectors(chunk))
            none = np.zeros(len(chunk), np.int64)
            report = self._write(view, chunk, none, none, values, leg, at + len(chunk), report)
            self.progress(Progress(view.name, at + len(chunk) - first, len(keys) - first))
        return report

    def _write(
        self,
        view: AnyView,
        keys: list[str],
        events: np.ndarray,
        ingests: np.ndarray,
        values: list[bytes],
        leg: _Leg,
        last: Any,
        report: ViewReport,
    ) -> ViewReport:
        left_out = forgotten(self.store, view.entity.name, keys, leg.until)
        expires = events + self.keep if self.keep else np.zeros(len(keys), np.int64)
        rows = [
            Row(key, (event, ingest), value, expiry)
            for key, event, ingest, value, expiry, out in zip(
                row_keys(view, keys),
                events.tolist(),
                ingests.tolist(),
                values,
                expires.tolist(),
                left_out.tolist(),
                strict=True,
            )
            if not out
        ]
        written = self.store.write(rows) if rows else 0
        change_note(self.store, progress_key(view), lambda note: {**note, "leg": leg.note(last)})
        return dataclasses.replace(
            report,
            entities=report.entities + len(rows),
            written=report.written + written,
            forgotten=report.forgotten + len(keys) - len(rows),
            newest=max(report.newest, int(events.max(initial=-1))),
            chunks=report.chunks + 1,
        )


def _numbers(view: Latest, frame: "pl.DataFrame") -> "list[pl.Series]":
    from vitok.features.plan import encoded

    out = []
    for name, dtype in zip(view.columns, view.dtypes, strict=True):
        whole = dtype == "int64" and frame[name].dtype.is_integer() and name not in view.source.encodings
        out.append(frame[name] if whole else encoded(frame[name], name, view.source))
    return out


def _with_view(view: AnyView, note: dict[str, Any]) -> dict[str, Any]:
    known = [tuple(item) for item in note.get("views", ())]
    own = (view.name, view.version)
    return note if own in known else {**note, "views": [*known, own]}


def _finished(leg: _Leg, note: dict[str, Any]) -> dict[str, Any]:
    mark = note.get("watermark")
    out = {name: value for name, value in note.items() if name != "leg"}
    # A backfill that begins after what was done before leaves a gap, which the next run has to fill.
    if leg.since is None or (mark is not None and leg.since <= mark):
        out["watermark"] = max(leg.until, mark or 0)
    return out
