"""Following a stream for good: windows that are saved, published for other processes, and read while they are filled.

A follower owns a folder. What it keeps there is whole at any moment, so that it may be killed; one that is asked to
stop saves a checkpoint, which makes the next start short.
"""

import contextlib
import fcntl
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs

from vitok.clock import SECOND, Clock, SystemClock, duration
from vitok.engines import LmdbStore
from vitok.engines.event_stream import Message
from vitok.engines.row_store import RowStore
from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.features.definitions import FeatureSet
from vitok.features.lag import Lag, LagMeter
from vitok.features.online import OnlineFeatures
from vitok.features.sources import key_text
from vitok.features.stream import JsonRows, StreamReport, StreamWorker
from vitok.features.views import View

if TYPE_CHECKING:
    import polars as pl

    from vitok.features.lanes import Checkpoint

_WAIT_S = 0.2  # for messages; a stop is seen after that at the latest
_LONGEST_PAUSE_S = 15.0
_MESSAGES_A_CHECKPOINT = 500_000


class Gate(Protocol):
    """Parts the rows of a batch before they count, such as a contract does, and hears whether they did."""

    def part(self, frame: "pl.DataFrame") -> "tuple[pl.DataFrame, pl.DataFrame]":
        """Returns the good rows, and the bad ones with a column `reason`."""
        ...

    def commit(self) -> None:
        """The rows parted since the last call count."""
        ...

    def discard(self) -> None:
        """They do not, and come again."""
        ...


class Published(OnlineFeatures):
    """Windows that other processes read from a store of rows: nothing is saved that was not published before.

    A process that is killed may publish a window twice, and leaves none out: what its store holds was published, and
    what its journal holds is published after the next start.

    Args:
        features: As for `OnlineFeatures`.
        store: As for `OnlineFeatures`.
        rows: Where windows are published, if anywhere.
        lateness: As for `OnlineFeatures`.
        clock: Tells the present.
    """

    def __init__(
        self,
        features: FeatureSet,
        store: Any,
        rows: RowStore | None,
        *,
        lateness: str | int = "10m",
        clock: Clock | None = None,
    ) -> None:
        self._rows = rows
        self._present = clock or SystemClock()
        super().__init__(features, store, lateness=lateness, journal=True, clock=clock)

    def begin_checkpoint(self, positions: Mapping[str, Any]) -> "Checkpoint":
        """Publishes what is due and takes a checkpoint.

        Raises:
            StoreError: If the rows could not be written; then no checkpoint is taken.
        """
        self.publish_due()
        return super().begin_checkpoint(positions)

    def publish_due(self) -> int:
        """Publishes the windows that changed since the last call; returns how many rows were written."""
        return 0 if self._rows is None else self.publish(self._rows, now=self._present.now())


class Follower:
    """Keeps the windows of one source up to date until it is told to stop.

    Windows live in `folder/SOURCE`, which belongs to one follower at a time. With `?group=` in the address several
    followers, in processes of their own, share the partitions: each partition has its own windows there, and a key
    must come on one partition only. What fails for a while, such as a broker that is started anew, is tried again.

    Args:
        features: The sets whose views of the source are kept.
        source: Name of the source that the stream carries.
        url: Address of the stream (see `vitok.engines.open_stream`).
        folder: Where the windows and the refused rows are kept.
        rows: Store that the windows are published to, for other processes; None for none.
        gate: Parts rows before they count.
        columns: Columns that the gate wants beside those of the views, as `JsonRows` takes them.
        lateness: As for `OnlineFeatures`.
        publish_every: How often windows that changed are published.
        checkpoint_every: How often a checkpoint is saved; without one a start takes longer, and nothing is lost.
        patience: How long the stream or a store may fail in a row before the follower gives up.
        time_unit: What whole numbers that stand for times count: us, ms or s.
        tell: Gets a sentence when something fails and when it works again.
        clock: Tells the present, from which events of the future are told.

    Raises:
        InvalidInput: If no view of windows reads the source.
        Conflict: If another follower has the folder, or other definitions filled it.
        StoreError: If the stream or the folder cannot be opened.

    Example:
        >>> import json, tempfile, threading
        >>> from vitok.engines import Outgoing, publish
        >>> from vitok.features import Count, Entity, FeatureReader, FeatureSet, Source, View
        >>> card = Entity("card", "card")
        >>> view = View(name="card", entity=card, source=Source("payments", "id"), aggregations=(Count("1h"),))
        >>> features = FeatureSet(views=(view,))
        >>> event = {"id": "p1", "event_time": "2026-01-01T10:00", "card": "7"}
        >>> publish("memory://follower-example", [Outgoing(b"7", json.dumps(event).encode())])
        1
        >>> stop = threading.Event()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     follower = Follower([features], "payments", "memory://follower-example", folder)
        ...     report = follower.run(stop, after_step=lambda n: None if n else stop.set())
        ...     reader = FeatureReader(features, windows=follower.windows)
        ...     values = reader.read({"card": ["7"]}, time=1_767_263_400_000_000).values
        ...     follower.close()
        >>> print(report, values)
        1 messages: 1 new, 0 seen before, 0 late, 0 rejected [[1.]]
    """

    def __init__(
        self,
        features: Sequence[FeatureSet],
        source: str,
        url: str,
        folder: str | Path,
        *,
        rows: RowStore | None = None,
        gate: Gate | None = None,
        columns: Mapping[str, str] | None = None,
        lateness: str | int = "10m",
        publish_every: str | int = "1s",
        checkpoint_every: str | int = "1m",
        patience: str | int = "5m",
        time_unit: str = "us",
        tell: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        self.features = windows_of(features, source)
        self.folder = Path(folder) / source
        self.rejected = self.folder / "rejected.jsonl"
        self._source, self._rows, self._gate = source, rows, gate
        self._lateness, self._clock, self._tell = lateness, clock, tell
        self._publish_s, self._checkpoint_s = duration(publish_every) / SECOND, duration(checkpoint_every) / SECOND
        self._patience_s = duration(patience) / SECOND
        self._resources = contextlib.ExitStack()
        self._held: dict[int, tuple[Published, contextlib.ExitStack]] = {}
        self._windows: Published | None = None
        self._published_at = self._saved_at = time.monotonic()
        self._saved_messages = 0
        self._meter = LagMeter(source, clock=clock)
        views = self.features.windowed
        rows_of = JsonRows(views[0].source, views, time_unit=time_unit, columns=columns)

        def decode(messages: Sequence[Message]) -> "tuple[pl.DataFrame, list[tuple[Message, str]]]":
            self._meter.took(messages)
            return rows_of(messages)

        try:
            if not in_group(url):
                self._windows = self._opened("windows", self._resources)
            self._worker = StreamWorker(
                source,
                url,
                self._windows if self._windows is not None else self._of_partition,
                decode=decode,
                check=None if gate is None else gate.part,
                rejected=self.rejected,
            )
        except BaseException:
            self._resources.close()
            raise
        self._resources.callback(self._give_back)

    @property
    def windows(self) -> OnlineFeatures:
        """The windows of all keys, to be read by any thread of this process.

        Raises:
            InvalidInput: If the partitions are shared with other processes, so that none knows all keys.
        """
        if self._windows is None:
            raise InvalidInput("stream: ?group=", self._source, "not be there where all keys are to be read")
        return self._windows

    @property
    def report(self) -> StreamReport:
        """What was taken in since the start."""
        return self._worker.report

    @property
    def lag(self) -> Lag:
        """How far the windows are behind the stream now; any thread may ask."""
        return self._meter.lag()

    def run(self, stop: threading.Event, *, after_step: Callable[[int], None] = lambda _: None) -> StreamReport:
        """Follows the stream until told to stop; then saves and publishes what there is.

        Args:
            stop: Set by another thread or a signal.
            after_step: Called after each batch with the number of its messages, 0 where none came for a while.

        Raises:
            StoreError: If the stream or a store has failed for longer than the patience.
            InvalidInput: If rows lack a column that the views or the contract want.
        """
        failed_at, pause = 0.0, 0.1
        while not stop.is_set():
            try:
                n = self._step()
            except StoreError as error:
                self._meter.failed(str(error))
                now = time.monotonic()
                # A partition that could not be given back in order is taken up again by a new process alone.
                if now - (failed_at or now) > self._patience_s or self._gone():
                    raise
                if not failed_at:
                    failed_at = now
                    self._tell(f"{error}; trying again")
                stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                continue
            if failed_at:
                self._tell("working again")
            failed_at, pause = 0.0, 0.1
            after_step(n)
        for state in self._states():
            state.checkpoint()
        return self.report

    def close(self) -> None:
        """Gives the partitions back, and the folder; what was not saved is in the journal."""
        self._resources.close()
        for number in list(self._held):
            self._held.pop(number)[1].close()

    def _give_back(self) -> None:
        try:
            self._worker.close()
        except StoreError as error:
            self._tell(f"no checkpoint was saved, the next start reads the journal: {error}")

    def _step(self) -> int:
        try:
            n = self._worker.step(_WAIT_S)
        except BaseException:
            if self._gate is not None:
                self._gate.discard()
            raise
        if n and self._gate is not None:
            self._gate.commit()
        for number in self._gone():
            # The worker has saved and closed it: another process may open it now.
            self._held.pop(number)[1].close()
        now = time.monotonic()
        if self._rows is not None and now - self._published_at >= self._publish_s:
            for state in self._states():
                state.publish_due()
            self._published_at = now
        fresh = self.report.n_messages - self._saved_messages
        if fresh and (now - self._saved_at >= self._checkpoint_s or fresh >= _MESSAGES_A_CHECKPOINT):
            for state in self._states():
                state.checkpoint()
            self._saved_at, self._saved_messages = now, self.report.n_messages
        self._meter.stepped(self._worker.stream.behind(), n=n)
        return n

    def _states(self) -> list[Published]:
        return [self._windows] if self._windows is not None else [state for state, _ in self._held.values()]

    def _gone(self) -> list[int]:
        return [number for number in self._held if number not in self._worker.partitions]

    def _of_partition(self, partition: int) -> OnlineFeatures:
        if partition in self._held:
            self._held.pop(partition)[1].close()
        resources = contextlib.ExitStack()
        state = self._opened(f"partition-{partition}", resources, patience_s=10.0)
        self._held[partition] = state, resources
        return state

    def _opened(self, name: str, resources: contextlib.ExitStack, *, patience_s: float = 0.0) -> Published:
        folder = self.folder / name
        resources.enter_context(owned(folder, patience_s=patience_s))
        store = LmdbStore(folder)
        resources.callback(store.close)
        try:
            return Published(self.features, store, self._rows, lateness=self._lateness, clock=self._clock)
        except Conflict:
            raise Conflict(
                f"the windows in {folder} were kept by other definitions of what reads {self._source}: name another "
                "folder, where they are made anew from the stream"
            ) from None


def windows_of(features: Sequence[FeatureSet], source: str) -> FeatureSet:
    """Returns the views of windows that read a source, of all sets, each once.

    Raises:
        InvalidInput: If there is none, or two sets differ about a view.
    """
    found: dict[str, View] = {}
    for one in features:
        for view in one.windowed:
            if view.source.name == source and found.setdefault(view.name, view).version != view.version:
                raise InvalidInput("views", view.name, "be the same in all feature sets")
    if not found:
        known = sorted({view.source.name for one in features for view in one.windowed})
        raise InvalidInput("source", source, f"be one that views of windows read: {', '.join(known) or 'none'}")
    return FeatureSet(views=tuple(found.values()))


def in_group(url: str) -> bool:
    """Says whether an address shares partitions with other readers.

    Example:
        >>> in_group("kafka://localhost:9092/payments?group=features"), in_group("memory://payments")
        (True, False)
    """
    return bool(parse_qs(url.partition("?")[2]).get("group"))


@contextlib.contextmanager
def owned(folder: Path, *, patience_s: float = 0.0) -> Iterator[None]:
    """Keeps a folder of windows from other processes for a block of code; the lock dies with its process.

    Args:
        folder: Made if it is not there.
        patience_s: How long to wait for another one to let it go, in seconds.

    Raises:
        Conflict: If another process has it.
        StoreError: If it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "owner").open("ab")
    except OSError as error:
        raise StoreError(f"the windows in {folder} cannot be opened: {error}") from error
    deadline = time.monotonic() + patience_s
    with lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    raise Conflict(
                        f"the windows in {folder} are followed by another process: stop that one first, or name "
                        "another folder"
                    ) from None
                time.sleep(0.05)
        yield


class KeptWindows:
    """What a follower that is not running has left in its folder; a holder for `forget`.

    Args:
        features: The sets whose views were kept.
        folder: The folder that the follower was given.
        lateness: As the follower was given.

    Example:
        >>> import tempfile
        >>> from vitok.features import Count, Entity, FeatureSet, Source, View
        >>> card = Entity("card", "card")
        >>> view = View(name="card", entity=card, source=Source("payments", "id"), aggregations=(Count("1h"),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     KeptWindows([FeatureSet(views=(view,))], folder).forget("card", {"card": "7"})
        0
    """

    def __init__(self, features: Sequence[FeatureSet], folder: str | Path, *, lateness: str | int = "10m") -> None:
        self._features = features
        self._folder = Path(folder)
        self._lateness = lateness

    def forget(self, entity: str, keys: Mapping[str, Any]) -> int:
        """Removes an entity from the windows, and the rows about it that were refused.

        Returns:
            In how many windows and refused rows it was.

        Raises:
            Conflict: If a follower is running there.
            StoreError: If the folder cannot be read or written.
        """
        n = 0
        for source in dict.fromkeys(view.source.name for one in self._features for view in one.windowed):
            place = self._folder / source
            with contextlib.ExitStack() as resources:
                kept = [file.parent for file in sorted(place.glob("*/data.mdb")) if file.parent.name != "keys"]
                for folder in kept:
                    resources.enter_context(owned(folder))
                for folder in kept:
                    store = LmdbStore(folder)
                    resources.callback(store.close)
                    wanted = windows_of(self._features, source)
                    online = OnlineFeatures(wanted, store, lateness=self._lateness, journal=True)
                    n += online.forget(entity, keys)
                    store.sync()
                n += _forget_lines(place / "rejected.jsonl", {name: key_text(name, keys[name]) for name in keys})
        return n


def _forget_lines(path: Path, keys: Mapping[str, str]) -> int:
    try:
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if not _is_about(line, keys)]
        if len(kept) < len(lines):
            new = path.with_name(f".{path.name}.forgetting")
            new.write_bytes(b"".join(kept))
            new.replace(path)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise StoreError(f"{path} could not be rewritten and is as it was: {error}") from error
    return len(lines) - len(kept)


def _is_about(line: bytes, keys: Mapping[str, str]) -> bool:
    try:
        record = json.loads(line)
        row = record["row"] if "row" in record else json.loads(record["value"])
        return all(str(row.get(name)) == text for name, text in keys.items())
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
