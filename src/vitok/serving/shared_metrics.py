"""Metrics of several worker processes behind one port: each writes down its own, and whoever is asked answers for all.

A worker has a file in a folder that all share and replaces it as a whole once a second. A worker that has died
is known by its lock, which the kernel lets go however it ended; its counts are then moved, once, into a file of those
that are gone, so that totals never fall and nothing counts twice. What happened after the last time it wrote is lost
with a worker that is killed; the decision log has it.
"""

import asyncio
import contextlib
import fcntl
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

from vitok import ids
from vitok.errors import InvalidInput, StoreError
from vitok.stats import LatencyHistogram

logger = logging.getLogger("vitok.serving")

EVERY = 1.0
_LOCK, _DATA = ".lock", ".metrics"
_GONE = "gone"
_LOOKS = 20
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})? (\S+)")

Histograms = Callable[[], Mapping[str, LatencyHistogram]]


class Exposing(Protocol):
    """Writes metrics in the text format of Prometheus, as `Metrics` does."""

    def expose(self) -> bytes:
        """Returns the text."""
        ...


class _Page(msgspec.Struct, omit_defaults=True):
    # What one worker has written, or what all those have that are gone; `folded` names them.
    text: str = ""
    latencies: dict[str, dict[str, Any]] = {}
    folded: list[str] = []


class SharedMetrics:
    """Shows the metrics of all workers of a service.

    Counters and histograms are added up. A gauge is a state of one process, so it is shown for each worker that
    lives, with its process id as the label `worker`.

    Args:
        folder: Folder of the service's workers, best in memory (`/dev/shm`, `/run`); made where it is missing. Only
            workers of one service, on one machine.
        metrics: This worker's own.
        latencies: This worker's histograms by name, for `latencies`; by default none.

    Raises:
        StoreError: If the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from vitok.serving.metrics import Metrics
        >>> one, two = Metrics(), Metrics()
        >>> for number, metrics in enumerate((one, two)):
        ...     metrics.counter("requests_total", "Requests.").add(number + 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with SharedMetrics(folder, one) as first, SharedMetrics(folder, two) as second:
        ...         first.publish()
        ...         print(second.expose().decode(), end="")
        # HELP requests_total Requests.
        # TYPE requests_total counter
        requests_total 3
    """

    def __init__(self, folder: str | Path, metrics: Exposing, *, latencies: Histograms | None = None) -> None:
        self._folder = Path(folder)
        self._metrics = metrics
        self._latencies = latencies
        self._closed = False
        # It is written by the event loop once a second, and by whoever is asked for all.
        self._writing = threading.Lock()
        # Not the process id: the next process may have the same.
        self.worker = f"{os.getpid()}-{ids.text(ids.uuid7())}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Named only once it is locked, or somebody could take it for that of a worker that is gone.
            hidden = self._folder / f"{self.worker}.new"
            self._lock = _locked(hidden)
            hidden.rename(self._path(_LOCK))
        except OSError as error:
            raise StoreError(f"the folder of metrics {self._folder} cannot be written: {error}") from error

    def publish(self) -> None:
        """Writes this worker's metrics down.

        Raises:
            StoreError: If they cannot be written; what was written before stands.
        """
        self._write(self._page())

    async def keep_published(self, *, every: float = EVERY) -> None:
        """Writes them down again and again until it is cancelled: a task beside the service.

        Where they cannot be written, the log says so once, and the next attempt is made in time.

        Args:
            every: Seconds between two times, above 0.
        """
        if not 0 < every < math.inf:
            raise InvalidInput("every", every, "be seconds, above zero and finite")
        failing = False
        while True:
            try:
                self.publish()
                failing = False
            except StoreError as error:
                if not failing:
                    logger.error("%s", error)
                failing = True
            await asyncio.sleep(every)

    def expose(self) -> bytes:
        """Returns the metrics of all workers in the text format of Prometheus.

        Where the folder cannot be written, those of this worker are shown all the same.

        Raises:
            StoreError: If the folder cannot be read.
        """
        merged = _Merged()
        for worker, page in self._pages():
            merged.add(page.text, worker.partition("-")[0])
        return merged.text()

    def latencies(self) -> dict[str, LatencyHistogram]:
        """Returns the histograms of all workers by name, each merged.

        Raises:
            StoreError: If the folder cannot be read.
        """
        merged: dict[str, LatencyHistogram] = {}
        for _, page in self._pages():
            _add_latencies(merged, page.latencies)
        return merged

    def close(self) -> None:
        """Writes them down for the last time and goes; whoever is asked next takes the counts over."""
        if not self._closed:
            self._closed = True
            try:
                self.publish()
            finally:
                self._lock.close()

    def __enter__(self) -> "SharedMetrics":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _page(self) -> _Page:
        own = {name: found.to_dict() for name, found in self._latencies().items()} if self._latencies else {}
        return _Page(self._metrics.expose().decode(), own)

    def _write(self, page: _Page) -> None:
        try:
            with self._writing:
                _replace(self._path(_DATA), page)
        except OSError as error:
            raise StoreError(f"metrics cannot be written to {self._folder}: {error}") from error

    def _path(self, ending: str) -> Path:
        return self._folder / f"{self.worker}{ending}"

    def _pages(self) -> list[tuple[str, _Page]]:
        """Returns the page of those that are gone, which has no worker, and of each that lives."""
        own = None
        if not self._closed:
            own = self._page()
            try:
                self._write(own)
                self._fold()
            except (StoreError, OSError) as error:
                logger.warning("metrics are shown, but not kept: %s", error)
        try:
            pages = self._read_all()
        except OSError as error:
            raise StoreError(f"the folder of metrics {self._folder} cannot be read: {error}") from error
        if own is not None:
            pages[self.worker] = own
        return list(pages.items())

    def _read_all(self) -> dict[str, _Page]:
        # No lock, so that a worker which was halted holding one halts nobody else: the page of those that are gone
        # changes whenever a worker moves there, so what was read between two equal looks at it belongs together.
        gone = self._gone()
        for _ in range(_LOOKS):
            pages = {"": gone}
            for path in sorted(self._folder.glob(f"*-*{_DATA}")):
                worker = path.name.removesuffix(_DATA)
                if worker not in gone.folded:
                    with contextlib.suppress(FileNotFoundError):
                        pages[worker] = _read(path)
            before, gone = gone, self._gone()
            if gone == before:
                break
        return pages

    def _gone(self) -> _Page:
        try:
            return _read(self._folder / f"{_GONE}{_DATA}")
        except FileNotFoundError:
            return _Page()

    def _fold(self) -> None:
        # Moves the counts of workers that are gone. Whoever dies in the middle of this leaves either the old page and
        # the files, or the new page, which names those whose files are still there.
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_locked(self._folder / f"{_GONE}{_LOCK}"))
            except BlockingIOError:
                return  # somebody else does it
            dead = []
            for lock in sorted(self._folder.glob(f"*-*{_LOCK}")):
                with contextlib.suppress(BlockingIOError, FileNotFoundError):
                    stack.enter_context(_locked(lock, mode="rb"))
                    dead.append(lock.name.removesuffix(_LOCK))
            gone = self._gone()
            new = [worker for worker in dead if worker not in gone.folded]
            if new:
                merged, latencies = _Merged(), dict[str, LatencyHistogram]()
                for page in (gone, *(self._last_of(worker) for worker in new)):
                    merged.add(page.text, "")
                    _add_latencies(latencies, page.latencies)
                told = {name: found.to_dict() for name, found in latencies.items()}
                _replace(self._folder / f"{_GONE}{_DATA}", _Page(merged.text().decode(), told, dead))
            for worker in dead:
                # The lock last, and with the page what its worker had half written.
                for path in self._folder.glob(f"{worker}{_DATA}*"):
                    path.unlink(missing_ok=True)
                (self._folder / f"{worker}{_LOCK}").unlink(missing_ok=True)

    def _last_of(self, worker: str) -> _Page:
        path = self._folder / f"{worker}{_DATA}"
        return _read(path) if path.exists() else _Page()


def described(latencies: Mapping[str, LatencyHistogram]) -> dict[str, Any]:
    """Returns latencies by stage as a document: quantiles in microseconds for people, buckets for whoever adds up.

    Args:
        latencies: Stage to histogram.

    Example:
        >>> waited = LatencyHistogram()
        >>> waited.record_many([10, 20, 30])
        >>> shown = described({"wait": waited})["wait"]
        >>> shown["count"], shown["p50_us"], shown["p999_us"]
        (3, 20.0, 30.0)
    """
    out: dict[str, Any] = {}
    for stage, found in latencies.items():
        quantiles = {"p50_us": 0.5, "p99_us": 0.99, "p999_us": 0.999}
        out[stage] = {
            "count": found.count,
            # JSON has no NaN.
            **{name: found.quantile(q) if found.count else None for name, q in quantiles.items()},
            "max_us": found.max,
            "mean_us": found.mean if found.count else None,
            "histogram": found.to_dict(),
        }
    return out


class _Merged:
    """Adds up texts of Prometheus' format, family by family, in the order in which they first came."""

    def __init__(self) -> None:
        self._heads: dict[str, list[str]] = {}
        self._kinds: dict[str, str] = {}
        self._samples: dict[str, dict[str, float]] = {}

    def add(self, text: str, worker: str) -> None:
        """Adds a text; its gauges get the label `worker`, or are left out where that is empty."""
        family = ""
        for line in text.splitlines():
            if line.startswith("#"):
                word, _, rest = line[2:].partition(" ")
                family, _, value = rest.partition(" ")
                if family not in self._kinds:
                    self._heads.setdefault(family, []).append(line)
                    self._samples.setdefault(family, {})
                    if word == "TYPE":
                        self._kinds[family] = value
                continue
            found = _SAMPLE.fullmatch(line)
            if found is None:
                continue
            name, labels, number = found[1], found[2] or "", float(found[3])
            samples = self._samples.setdefault(family, {})
            if self._kinds.get(family) == "gauge":
                if worker:
                    samples[f"{name}{_with_worker(labels, worker)}"] = number
            else:
                key = f"{name}{labels}"
                samples[key] = samples.get(key, 0.0) + number

    def text(self) -> bytes:
        """Returns the sum."""
        out = []
        for family, samples in self._samples.items():
            out += self._heads.get(family, [])
            out += [f"{key} {_number(value)}" for key, value in samples.items()]
        return ("\n".join(out) + "\n").encode() if out else b""


def _with_worker(labels: str, worker: str) -> str:
    own = f'worker="{worker}"'
    return f"{{{own},{labels[1:]}" if labels else f"{{{own}}}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def _add_latencies(merged: dict[str, LatencyHistogram], pages: Mapping[str, dict[str, Any]]) -> None:
    for name, data in pages.items():
        merged.setdefault(name, LatencyHistogram()).merge(LatencyHistogram.from_dict(data))


def _read(path: Path) -> _Page:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Page)
    except msgspec.DecodeError as error:
        # A machine that lost power may leave an empty file behind; it must not take the others' metrics with it.
        logger.warning("%s cannot be read and counts as empty: %s", path, error)
        return _Page()


def _replace(path: Path, page: _Page) -> None:
    # Replaced as a whole: whoever reads sees the old page or the new one.
    new = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        new.write_bytes(msgspec.json.encode(page))
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def _locked(path: Path, *, mode: str = "ab") -> IO[bytes]:
    """Returns a file with its lock; BlockingIOError where somebody else has it."""
    file: IO[bytes] = path.open(mode)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file
