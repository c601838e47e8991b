"""What `vitok features follow` and `serve` run: streams behind contracts, and vectors over HTTP and gRPC."""

import contextlib
import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitok import contracts
from vitok.clock import Clock, SystemClock, isoformat
from vitok.console.feature_options import indexes_of
from vitok.console.served_reading import place, reference_edges
from vitok.engines import open_rows
from vitok.errors import ContractBroken, InvalidInput, ServiceError, VitokError
from vitok.features import FeatureReader, FeatureSet
from vitok.features.live import Follower, in_group
from vitok.features.served_writer import ServedWriter
from vitok.features.stream import StreamReport
from vitok.registry import has_registry

if TYPE_CHECKING:
    import polars as pl

    from vitok.contracts import Contract
    from vitok.contracts.streams import BatchChecker
    from vitok.stats import FrozenEdges

_SAY_EVERY_S = 10.0
_GRACE_S = 5.0
_LOOK_EVERY_S = 1.0
_KINDS = {"string": "text", "number": "number", "integer": "number"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Following:
    """How streams are followed.

    Attributes:
        state: Folder of the windows.
        contract: The contract that events must keep, or None.
        table: Name of its table; by default that of the source's name, or the only one.
        lateness: How far behind the newest event of its key a question may come.
        publish_every: How often windows that changed are published.
        checkpoint_every: How often a checkpoint is saved.
        patience: How long the stream or a store may fail in a row.
        time_unit: What whole numbers that stand for times count.
    """

    state: Path
    contract: Path | None = None
    table: str | None = None
    lateness: str = "10m"
    publish_every: str = "1s"
    checkpoint_every: str = "1m"
    patience: str = "5m"
    time_unit: str = "us"

    @contextlib.contextmanager
    def follower(
        self,
        features: Sequence[FeatureSet],
        source: str,
        url: str,
        *,
        publish: str | None = None,
        tell: Callable[[str], None],
    ) -> Iterator[Follower]:
        """Opens a follower of one stream; closes it at the end.

        Args:
            features: The sets whose views are kept.
            source: Name of the source.
            url: Address of the stream.
            publish: Address of the store for other processes.
            tell: Gets what fails, in sentences.
        """
        clock = SystemClock()
        with contextlib.ExitStack() as resources:
            gate = None
            if self.contract is not None:
                # Keys are remembered over restarts where all partitions are followed by one process.
                kept = None if in_group(url) else self.state / source / "keys"
                gate = ContractGate.opened(self.contract, self.table, source, kept, clock)
                resources.callback(gate.close)
            rows = None if publish is None else open_rows(publish)
            if rows is not None:
                resources.callback(getattr(rows, "close", lambda: None))
            follower = Follower(
                features,
                source,
                url,
                self.state,
                rows=rows,
                gate=gate,
                columns=gate.columns if gate is not None else None,
                lateness=self.lateness,
                publish_every=self.publish_every,
                checkpoint_every=self.checkpoint_every,
                patience=self.patience,
                time_unit=self.time_unit,
                tell=tell,
                clock=clock,
            )
            resources.callback(follower.close)
            yield follower


class ContractGate:
    """Parts the rows of a stream by a contract: a row that breaks a rule is kept with the reason and does not count.

    A batch that cannot be judged at all, or breaks a rule that blocks, is refused as a whole.

    Args:
        checker: The contract's checker of batches.
        clock: Tells the present.
    """

    def __init__(self, checker: "BatchChecker", clock: Clock) -> None:
        self._checker = checker
        self._clock = clock
        self.columns = {item.name: _KINDS.get(item.logical_type, "") for item in checker.table.fields}

    @classmethod
    def opened(cls, path: Path, table: str | None, source: str, kept: Path | None, clock: Clock) -> "ContractGate":
        """Opens the contract in a file.

        Args:
            path: The contract.
            table: Name of the table, if it is not the source's and there are several.
            source: Name of the source.
            kept: Folder in which accepted keys are remembered; None for as long as the process runs.
            clock: Tells the present.
        """
        from vitok.contracts.keys import KeyMemory

        contract: Contract = contracts.load(path)
        names = [item.name for item in contract.tables]
        chosen = contract.table(table or (source if source in names else None)).name
        keys = KeyMemory(kept)
        try:
            return cls(contract.batch_checker(chosen, keys=keys), clock)
        except VitokError:
            keys.close()
            raise

    def part(self, frame: "pl.DataFrame") -> "tuple[pl.DataFrame, pl.DataFrame]":
        """Returns the rows that keep the contract, and the others with their reason."""
        import polars as pl

        if frame.is_empty():
            return frame, frame.with_columns(pl.lit("").alias("reason"))
        try:
            report = self._checker.check(frame, now=self._clock.now())
        except ContractBroken as error:
            return frame.clear(), frame.with_columns(pl.lit(str(error)).alias("reason"))
        return report.accepted, report.rejected

    def commit(self) -> None:
        """Remembers the keys of what was accepted."""
        self._checker.commit()

    def discard(self) -> None:
        """Forgets what was checked since the last commit."""
        self._checker.discard()

    def close(self) -> None:
        """Lets the memory of keys go."""
        self._checker.keys.close()


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Gives an event that SIGTERM and SIGINT set while the block runs."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            signal.signal(number, lambda *_: stop.set())
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(follower: Follower, *, idle_seconds: float | None, say: Callable[[str], None] | None) -> StreamReport:
    """Follows a stream until SIGTERM or SIGINT, or until nothing has come for a while.

    Args:
        follower: What follows.
        idle_seconds: Ends when no message came for so long; None to go on.
        say: Gets a line now and then about how far it is; None for silence.
    """
    last = said = time.monotonic()
    with stopped_by_signals() as stop:

        def after_step(n: int) -> None:
            nonlocal last, said
            now = time.monotonic()
            if n:
                last = now
            elif idle_seconds is not None and now - last >= idle_seconds:
                stop.set()
            if say is not None and now - said >= _SAY_EVERY_S:
                said = now
                say(f"{follower.report}; {follower.lag}")

        return follower.run(stop, after_step=after_step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Address:
    """Where the service listens.

    Attributes:
        host: Address to listen on.
        port: Port of HTTP; 0 for a free one.
        grpc_port: Port of gRPC; 0 for a free one, None for none.
    """

    host: str
    port: int
    grpc_port: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hooks:
    """What is watched of a service.

    Attributes:
        home: Folder of everything vitok writes: what is served is kept there by the hour; None to keep nothing.
        save_every: How often it is written.
        keep: How long an hour is kept.
        most_behind: How far a stream may be behind before the service says that it should not be asked; "" for any.
    """

    home: Path | None = None
    save_every: str = "10s"
    keep: str = "90d"
    most_behind: str = "1m"

    def writer(self, tell: Callable[[str], None]) -> ServedWriter | None:
        """Makes what counts and keeps what is served, if anything does."""
        if self.home is None:
            return None
        url = f"lmdb://{place(self.home)}"
        return ServedWriter(url, every=self.save_every, keep=self.keep, tell=tell)

    def edges(self, features: FeatureSet, tell: Callable[[str], None]) -> "dict[str, FrozenEdges]":
        """Returns the edges of the reference in Production, none where there is none that fits."""
        if self.home is None or not has_registry(self.home):
            return {}
        try:
            return reference_edges(self.home, features)
        except VitokError as error:
            tell(f"what is served is kept without histograms: {error}")
            return {}


def serve_features(
    sets: Mapping[str, FeatureSet],
    address: Address,
    *,
    store: str | None,
    streams: Mapping[str, str],
    following: Following | None,
    indexes: Mapping[str, Any],
    hooks: Hooks,
    ready: Callable[[dict[str, Any]], None],
    tell: Callable[[str], None],
) -> None:
    """Serves feature sets until SIGTERM or SIGINT; then answers what was asked, saves the windows and returns.

    Args:
        sets: Name in the path to feature set.
        address: Where to listen.
        store: Address of the online store; None where streams and indexes hold everything.
        streams: Source to address of a stream that this process follows itself.
        following: How; needed where there are streams.
        indexes: The vectors of embeddings by `"name@version"`.
        hooks: What is watched.
        ready: Gets where the service is to be found, once it accepts connections.
        tell: Gets what fails, in sentences.

    Raises:
        ServiceError: If an address cannot be used.
        StoreError: If a stream failed for longer than the patience; the service has ended then.
    """
    from vitok.features.warming import warm_up
    from vitok.serving import Running, serve
    from vitok.serving.feature_readiness import Readiness
    from vitok.serving.feature_service import FeatureEndpoint, feature_application

    failures: list[str] = []
    stop = threading.Event()
    services: list[Running] = []
    with contextlib.ExitStack() as resources:
        followers = []
        for source, url in streams.items():
            if following is None:
                raise InvalidInput("--state", None, "name a folder for the windows of the streams")
            if in_group(url):
                rule = "not have ?group=: the service must know the keys of all partitions"
                raise InvalidInput(f"--stream {source}", url, rule)
            opened = following.follower(tuple(sets.values()), source, url, tell=tell)
            followers.append(resources.enter_context(opened))
        rows = None if store is None else open_rows(store)
        if rows is not None:
            resources.callback(getattr(rows, "close", lambda: None))
        writer = hooks.writer(tell)
        endpoints = [
            FeatureEndpoint(
                name,
                FeatureReader(
                    features,
                    rows,
                    windows=[item.windows for item in followers],
                    indexes=indexes_of(features, indexes),
                    lateness=following.lateness if following is not None else "10m",
                ),
                served=None if writer is None else writer.of(name, features, edges=hooks.edges(features, tell)),
            )
            for name, features in sets.items()
        ]
        readiness = Readiness(endpoints, followers, served=writer, most_behind=hooks.most_behind)
        if writer is not None:
            resources.enter_context(writer)

        def work(follower: Follower) -> None:
            reason = "its thread has ended"
            try:
                follower.run(stop)
            except VitokError as error:
                reason = str(error)
            finally:
                if not stop.is_set():
                    # Old windows would be served as if they were new: better a process that is started anew.
                    failures.append(reason)
                    services[0].stop()

        def look() -> None:
            while not stop.wait(_LOOK_EVERY_S):
                readiness.report()

        threads = [threading.Thread(target=work, args=(item,), name="follower", daemon=True) for item in followers]
        grpc = None
        if address.grpc_port is not None:
            from vitok.serving.feature_grpc import grpc_server

            server, bound = grpc_server(endpoints, host=address.host, port=address.grpc_port, readiness=readiness)
            # Those who watch the health hear of a change without asking.
            threads.append(threading.Thread(target=look, name="readiness", daemon=True))
            grpc = f"{address.host}:{bound}"
            server.start()
            resources.callback(lambda: server.stop(_GRACE_S).wait())

        for endpoint in endpoints:
            warm_up(endpoint.reader.features)
            endpoint.warm_up()

        def started(service: Running) -> None:
            services.append(service)
            for thread in threads:
                thread.start()
            paths = [endpoint.path for endpoint in endpoints]
            ready({"http": service.url, "grpc": grpc, "paths": paths})

        if followers:
            # A thread that counts events must not hold the loop for the usual 5 ms.
            sys.setswitchinterval(0.0005)
        try:
            application = feature_application(endpoints, readiness=readiness)
            serve(application, endpoints, host=address.host, port=address.port, ready=started)
        finally:
            stop.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
    if failures:
        raise ServiceError(f"the service has ended, since a stream failed: {failures[0]}")


def newest_of(follower: Follower) -> str:
    """Writes the time of the newest event of a follower, "" where it has none or shares its partitions."""
    try:
        newest = follower.windows.newest
    except InvalidInput:
        return ""
    return isoformat(newest) if newest else ""
