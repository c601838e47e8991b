"""When each view is taken to the online store, and what came of it."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vitok.clock import MINUTE, Clock, SystemClock, duration, isoformat
from vitok.engines.row_store import RowStore, open_rows
from vitok.errors import StoreError, VitokError
from vitok.features.definitions import FeatureSet
from vitok.features.embeddings import VectorIndex
from vitok.features.materialise import Progress, materialise, watermark
from vitok.features.notes import change_note, read_note
from vitok.features.rows import encode_key
from vitok.features.views import AnyView

_NEVER = -(2**63)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of the last run of a view.

    Attributes:
        view: Its name.
        version: Its version.
        started: When the run began, in microseconds.
        seconds: How long it took.
        entities: Entities that had news.
        written: Rows that were newer than the store's.
        watermark: Up to when the view is in the store without a gap, in microseconds; None where it never was.
        newest: Event time of the newest row of the last run that had one, in microseconds; -1 before that.
        failures: Runs that failed in a row.
        error: What the last one said, where it failed.
    """

    view: str
    version: str
    started: int
    seconds: float = 0.0
    entities: int = 0
    written: int = 0
    watermark: int | None = None
    newest: int = -1
    failures: int = 0
    error: str = ""

    def lag(self, now: int) -> int | None:
        """Returns how far the store is behind, in microseconds; None where the view never was there."""
        return None if self.watermark is None else max(0, now - self.watermark)

    def __str__(self) -> str:
        """Returns the outcome as one line."""
        upto = "never" if self.watermark is None else isoformat(self.watermark)
        said = f"failed {self.failures} times: {self.error}" if self.failures else f"{self.written} rows written"
        return f"{self.view}: {said}, {self.seconds:.2f} s from {isoformat(self.started)}; up to {upto}"


_FIELDS = tuple(field.name for field in dataclasses.fields(Outcome))


def due(views: Iterable[AnyView], last_runs: Mapping[str, int], now: int) -> tuple[AnyView, ...]:
    """Returns the views whose `refresh` has passed since their last run, the most overdue by its own measure first.

    Args:
        views: The views.
        last_runs: When each view's last run began, in microseconds, by name; none for a view that never ran.
        now: The present, in microseconds.

    Example:
        >>> from vitok.clock import MINUTE
        >>> from vitok.features import Entity, Latest, Source
        >>> customer, source = Entity("customer", "id"), Source("s")
        >>> hot = Latest(name="hot", entity=customer, source=source, columns=("a",), refresh="5m")
        >>> cold = Latest(name="cold", entity=customer, source=source, columns=("b",))
        >>> [view.name for view in due((cold, hot), {"hot": 0, "cold": 0}, 6 * MINUTE)]
        ['hot']
        >>> [view.name for view in due((hot, cold), {"hot": 0}, 6 * MINUTE)]
        ['cold', 'hot']
    """
    overdue = [((now - last_runs.get(view.name, _NEVER)) / duration(view.refresh), view) for view in views]
    ready = sorted((item for item in overdue if item[0] >= 1), key=lambda item: -item[0])
    return tuple(view for _, view in ready)


class Materialiser:
    """Takes the views of a set to the online store, each when it is due.

    It has no thread of its own and keeps what it knows in the store: after a crash another one goes on. Two at once do
    the work twice and no harm. A view that fails does not hold up the others; it is tried again after a minute, or
    after its `refresh` where that is shorter.

    Args:
        features: The set.
        sources: As for `materialise`.
        store: The online store or its address.
        indexes: As for `materialise`.
        overlap: As for `materialise`.
        lateness: As for `materialise`.
        keep: As for `materialise`.
        progress: As for `materialise`.
        clock: Tells the present.

    Example:
        >>> import polars as pl
        >>> from vitok.clock import HOUR, EventClock
        >>> from vitok.features import Entity, FeatureSet, Latest, Source
        >>> customer = Entity("customer", "id")
        >>> view = Latest(name="account", entity=customer, source=Source("accounts"), columns=("limit",))
        >>> rows = pl.DataFrame({"id": [7], "event_time": [1], "limit": [1.0]})
        >>> rows = rows.with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
        >>> clock = EventClock(HOUR)
        >>> job = Materialiser(FeatureSet(views=(view,)), {"accounts": rows}, "memory://job-example", clock=clock)
        >>> [outcome.written for outcome in job.run_due()], job.run_due()
        ([1], ())
        >>> job.outcomes()["account"].lag(clock.now() + 5)
        5
    """

    def __init__(
        self,
        features: FeatureSet,
        sources: Mapping[str, Any],
        store: RowStore | str,
        *,
        indexes: Mapping[str, VectorIndex] | None = None,
        overlap: str | int | None = None,
        lateness: str | int = "10m",
        keep: str | int = "",
        progress: Callable[[Progress], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.features = features
        self.sources = sources
        self.store: RowStore = open_rows(store) if isinstance(store, str) else store
        self._indexes, self._overlap, self._lateness, self._keep = indexes, overlap, lateness, keep
        self._progress = progress
        self._clock = clock or SystemClock()
        self._failed: dict[str, Outcome] = {}  # of runs that even the store could not be told of

    def outcomes(self) -> dict[str, Outcome]:
        """Returns what came of the last run of each view that ever ran, by name of the view.

        Raises:
            StoreError: If the store cannot be read.
        """
        found = {}
        for view in self.features.views:
            note, _ = read_note(self.store, _outcome_key(view))
            last = Outcome(**{name: note[name] for name in _FIELDS if name in note}) if note else None
            failed = self._failed.get(view.name)
            if failed is not None and (last is None or last.started < failed.started):
                last = failed
            if last is not None:
                found[view.name] = last
        return found

    def run_due(self) -> tuple[Outcome, ...]:
        """Runs the views that are due, one after the other.

        Returns:
            What came of each; a run that failed says so in its outcome.

        Raises:
            StoreError: If the store cannot say what ran before.
        """
        last = self.outcomes()
        runs = {}
        for view in self.features.views:
            outcome = last.get(view.name)
            if outcome is not None:
                wait = duration(view.refresh)
                runs[view.name] = outcome.started - (wait - min(wait, MINUTE) if outcome.failures else 0)
        return tuple(self._run(view, last.get(view.name)) for view in due(self.features.views, runs, self._clock.now()))

    def run_forever(self, stop: threading.Event, *, every: str | int = "10s") -> None:
        """Runs what is due, again and again, until told to stop; an open run is finished first.

        A store that is down is tried again each time.

        Args:
            stop: Set it to stop.
            every: How long to wait between looks.
        """
        pause = duration(every) / 1e6
        while not stop.is_set():
            # Nobody can be told before the store is back: `outcomes` raises the same.
            with contextlib.suppress(StoreError):
                self.run_due()
            stop.wait(pause)

    def _run(self, view: AnyView, last: Outcome | None) -> Outcome:
        started, begun = self._clock.now(), time.perf_counter()
        outcome = Outcome(view=view.name, version=view.version, started=started)
        if last is not None and last.version == view.version:
            outcome = dataclasses.replace(outcome, watermark=last.watermark, newest=last.newest, failures=last.failures)
        try:
            report = materialise(
                view,
                self.sources,
                self.store,
                until=started,
                indexes=self._indexes,
                overlap=self._overlap,
                lateness=self._lateness,
                keep=self._keep,
                progress=self._progress,
                clock=self._clock,
            )
            outcome = dataclasses.replace(
                outcome,
                entities=sum(item.entities for item in report.views),
                written=report.written,
                newest=max([outcome.newest, *(item.newest for item in report.views)]),
                watermark=watermark(self.store, view),
                failures=0,
            )
        except VitokError as error:
            outcome = dataclasses.replace(outcome, failures=outcome.failures + 1, error=str(error))
        outcome = dataclasses.replace(outcome, seconds=time.perf_counter() - begun)
        self._record(view, outcome)
        return outcome

    def _record(self, view: AnyView, outcome: Outcome) -> None:
        try:
            change_note(self.store, _outcome_key(view), lambda _: dataclasses.asdict(outcome))
        except StoreError:
            self._failed[view.name] = outcome
        else:
            self._failed.pop(view.name, None)


def _outcome_key(view: AnyView) -> bytes:
    return b"{%outcome}" + encode_key(view.name) + b"@" + view.version.encode()
