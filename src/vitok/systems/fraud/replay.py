"""Sending past transactions through the real service, in the order in which they happened, with labels as they came."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vitok.clock import HOUR
from vitok.errors import ServiceError
from vitok.serving import ConnectionBroken, PipelinedClient
from vitok.stats import LatencyHistogram

if TYPE_CHECKING:
    import polars as pl

DECIDE = "/v1/systems/fraud/decide"
OUTCOMES_AT_ONCE = 500


class ServiceProcess:
    """The service as a process of its own, as an operator would start it.

    Args:
        home: The service's home folder.
        port: Port, 0 for a free one.

    Raises:
        ServiceError: If it does not answer in time; the message ends with what it wrote.
    """

    def __init__(self, home: Path, *, port: int = 0, seconds: float = 60.0) -> None:
        self.home = home
        self._announcement = home / "service.json"
        self._log_path = home / "service.log"
        self._announcement.unlink(missing_ok=True)
        command = [sys.executable, "-m", "vitok", "serve", "fraud", "--home", str(home), "--port", str(port)]
        # Nobody waits for the past: a pause of the machine must not change who answers.
        command += ["--clock", "events", "--deadline", "10", "--quiet"]
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + seconds
        while not self._announcement.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                self.process.wait()
                written = self._log_path.read_text(errors="replace")[-2000:]
                raise ServiceError(f"the service did not start; it wrote:\n{written}")
            time.sleep(0.02)
        self.port = int(json.loads(self._announcement.read_text())["port"])

    def client(self, *, window: int = 64) -> PipelinedClient:
        """Returns a client for decisions."""
        return PipelinedClient("127.0.0.1", self.port, DECIDE, window=window)

    def kill(self) -> None:
        """Ends it as a crash would (SIGKILL)."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Asks it to end, and waits until the log is sealed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> "ServiceProcess":
        """Gives itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the process."""
        self.stop()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hour:
    """What happens in one hour of the replay.

    Attributes:
        start: Microseconds.
        bodies: Requests for decisions, in order.
        outcomes: Bodies of `POST /v1/outcomes` with the labels that become known in this hour.
    """

    start: int
    bodies: Sequence[bytes]
    outcomes: Sequence[bytes]


def hours(transactions: "pl.DataFrame", labels: "pl.DataFrame", *, start: int, end: int) -> Iterator[Hour]:
    """Cuts transactions and labels of `[start, end)` into hours.

    Labels of an hour are sent before its transactions; the features look at each label's own time, so none is seen
    early.
    """
    import polars as pl

    def within(column: str) -> "pl.Expr":
        lower = pl.lit(start).cast(pl.Datetime("us", "UTC"))
        upper = pl.lit(end).cast(pl.Datetime("us", "UTC"))
        return (pl.col(column) >= lower) & (pl.col(column) < upper)

    def iso(column: str) -> "pl.Expr":
        return pl.col(column).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")

    requests = transactions.filter(within("event_time")).sort("event_time", maintain_order=True)
    requests = requests.select(
        hour=pl.col("event_time").dt.epoch("us") // HOUR,
        body=pl.struct(
            "transaction_id", iso("event_time").alias("event_time"), "customer_id", "terminal_id", "amount"
        ).struct.json_encode(),
    )
    known = labels.filter(within("label_time")).sort("label_time", maintain_order=True)
    known = known.select(
        hour=pl.col("label_time").dt.epoch("us") // HOUR,
        body=pl.struct(
            pl.col("transaction_id").alias("request_id"),
            pl.col("is_fraud").cast(pl.Float64).alias("value"),
            iso("label_time").alias("event_time"),
            pl.lit("chargeback").alias("source"),
        ).struct.json_encode(),
    )
    by_hour = {int(key[0]): frame["body"].to_list() for key, frame in requests.group_by("hour")}
    labels_by_hour = {int(key[0]): frame["body"].to_list() for key, frame in known.group_by("hour")}
    for hour in range(start // HOUR, -(-end // HOUR)):
        items = labels_by_hour.get(hour, [])
        chunks = [items[i : i + OUTCOMES_AT_ONCE] for i in range(0, len(items), OUTCOMES_AT_ONCE)]
        yield Hour(
            start=hour * HOUR,
            bodies=[body.encode() for body in by_hour.get(hour, [])],
            outcomes=[('{"outcomes":[' + ",".join(chunk) + "]}").encode() for chunk in chunks],
        )


@dataclasses.dataclass
class Tally:
    """What the replay has seen so far.

    Attributes:
        decisions: Decisions acknowledged.
        refused: Requests answered with a 4xx or 5xx.
        first_refusal: What the first of them said.
        outcomes: Outcomes taken.
        seconds: Seconds spent sending and waiting, pipelined.
        version: Model version of the last answer.
    """

    decisions: int = 0
    refused: int = 0
    first_refusal: str = ""
    outcomes: int = 0
    seconds: float = 0.0
    version: str = ""


class Replay:
    """Sends hours to a service and keeps the tally.

    Args:
        service: The running service.
        window: Requests in flight.
    """

    def __init__(self, service: ServiceProcess, *, window: int = 64) -> None:
        self.service = service
        self._client = service.client(window=window)
        self.tally = Tally()
        self.latency = LatencyHistogram()

    def send(self, hour: Hour, *, rate: float | None = None) -> None:
        """Sends one hour.

        Args:
            hour: What happens in it.
            rate: Requests a second, sent on time whatever the answers do, with latency measured from the intended
                time; None sends as fast as the window allows.
        """
        self.learn(hour.outcomes)
        self.decide(hour.bodies, rate=rate)

    def until(self, revision: int, overrides: Sequence[str] = (), *, seconds: float = 30.0) -> None:
        """Waits until what ledger and overrides say is in force: a second is half a day of the replay.

        Args:
            revision: The entry of the ledger.
            overrides: Keys of the overrides that stand.
            seconds: How long at most.

        Raises:
            ServiceError: If it takes longer.
        """
        deadline = time.monotonic() + seconds
        while True:
            told = msgspec.json.decode(self._client.get("/readyz").body)
            if told["revision"] >= revision and told["overrides"] == list(overrides):
                return
            if time.monotonic() > deadline:
                raise ServiceError(f"the service does not follow the ledger to its entry {revision}, or an override")
            time.sleep(0.01)

    def learn(self, outcomes: Sequence[bytes]) -> None:
        """Sends outcomes."""
        for body in outcomes:
            reply = self._client.post("/v1/outcomes", body)
            if reply.status != 200:
                raise ServiceError(f"outcomes were refused: {reply.body.decode(errors='replace')[:500]}")
            result = msgspec.json.decode(reply.body)
            self.tally.outcomes += result["accepted"]

    def decide(self, bodies: Sequence[bytes], *, rate: float | None = None) -> None:
        """Sends requests for decisions, in order."""
        if not bodies:
            return
        last = b""

        def on_reply(_: int, status: int, body: bytes) -> None:
            nonlocal last
            if status == 200:
                self.tally.decisions += 1
                last = body
                return
            self.tally.refused += 1
            self.tally.first_refusal = self.tally.first_refusal or body.decode(errors="replace")

        if rate is None:
            started = time.perf_counter()
            self._client.send_all(bodies, on_reply)
            self.tally.seconds += time.perf_counter() - started
        else:
            report = self._client.paced(bodies, rate, on_reply=on_reply)
            self.latency.merge(report.latency)
        if last:
            self.tally.version = msgspec.json.decode(last)["model_version"]

    def reconnect(self, service: ServiceProcess) -> None:
        """Goes on with another process, after a crash."""
        self._client.close()
        self.service = service
        self._client = service.client()

    def close(self) -> None:
        """Closes the connection."""
        with contextlib.suppress(ConnectionBroken, OSError):
            self._client.close()


def running(home: Path) -> int | None:
    """Returns the process id of the service that runs in a home folder, or None."""
    try:
        pid = int(json.loads((home / "service.json").read_text())["pid"])
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError):
        return None
    return pid


def announce(home: Path, port: int) -> None:
    """Writes where the service listens, for those who started it."""
    temporary = home / "service.json.tmp"
    temporary.write_text(json.dumps({"pid": os.getpid(), "port": port}))
    temporary.replace(home / "service.json")
