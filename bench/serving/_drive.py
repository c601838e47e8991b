"""Drives servers of HTTP for comparison: starts each by itself, saturates it, and reads what its processes have used.

The client of the closed loop does nothing but send what was made before and look for the end of each reply, so that a
core of it is enough for more than any server here answers. It says how busy it was itself: near 1 it is what is
measured.
"""

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench._server import free_port, started  # noqa: E402
from scipy.stats import binom  # noqa: E402

_READ = 1 << 18
_STALL_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """How a server is started.

    Attributes:
        name: What it is called.
        command: Its command; `{port}` in a part becomes the port.
        rate: Requests a second of the open loop, of which it is capable.
        variables: Environment variables on top of ours; `{port}` likewise.
        folder: Its working folder.
    """

    name: str
    command: Sequence[str]
    rate: float
    variables: Mapping[str, str]
    folder: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Driven:
    """What a closed loop did.

    Attributes:
        answered: Replies with status 200; any other stops the run.
        seconds: How long it took.
        busy: Processor time of the client to that.
    """

    answered: int
    seconds: float
    busy: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.answered / self.seconds


@contextlib.contextmanager
def alone(server: Server) -> Iterator[tuple[int, int]]:
    """Runs a server for the length of a block; gives its first process and its port, and leaves none of it behind."""
    port = free_port()
    parts = [part.replace("{port}", str(port)) for part in server.command]
    variables = {"OMP_NUM_THREADS": "1"}
    variables |= {name: value.replace("{port}", str(port)) for name, value in server.variables.items()}
    family: list[int] = []
    try:
        with started(parts, port, folder=server.folder, variables=variables) as process:
            try:
                yield process.pid, port
            finally:
                family = tree(process.pid)
    finally:
        # Some start processes in groups of their own.
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def tree(pid: int) -> list[int]:
    """Returns a process and all below it."""
    children: dict[int, list[int]] = {}
    for item in Path("/proc").iterdir():
        if item.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # The name is in parentheses and may hold blanks; the parent is the second word behind it.
                fields = (item / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(item.name))
    found, waiting = [], [pid]
    while waiting:
        at = waiting.pop()
        found.append(at)
        waiting += children.get(at, [])
    return found


def wire(path: str, bodies: Sequence[bytes], headers: Sequence[str] = ()) -> list[bytes]:
    """Returns requests as they go over the wire; `headers` has a line, without its end, for each body, or is empty."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    lines = [f"{line}\r\n" for line in headers] or [""] * len(bodies)
    return [
        b"%b%bcontent-length: %d\r\n\r\n%b" % (head.encode(), line.encode(), len(body), body)
        for body, line in zip(bodies, lines, strict=True)
    ]


def answers(port: int, path: str, bodies: Sequence[bytes], *, patience: float = 60.0) -> list[float]:
    """Returns the first number of each answer; asks again while the server is not ready yet.

    Raises:
        RuntimeError: If it does not answer.
    """
    deadline = time.monotonic() + patience
    said: object = None
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            found = []
            for body in bodies:
                connection.request("POST", path, body, {"content-type": "application/json"})
                reply = connection.getresponse()
                said = text = reply.read()
                if reply.status != 200:
                    break
                found.append(float(json.loads(text)["outputs"][0]["data"][0]))
            else:
                return found
        except (OSError, http.client.HTTPException) as error:
            said = error
        finally:
            connection.close()
        time.sleep(0.2)
    raise RuntimeError(f"{path} on port {port} does not answer: {said!r}")


def saturate(
    port: int,
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: float = 0.0,
    count: int = 0,
    start: int = 0,
    in_flight: int = 1,
) -> Driven:
    """Keeps requests in flight on each connection until the time is over, or so many have been answered.

    Args:
        port: Where the server listens on 127.0.0.1.
        requests: As they go over the wire, sent in turn.
        connections: How many connections.
        seconds: How long.
        count: How many requests instead.
        start: Which request is the first.
        in_flight: Requests on a connection at a time; above 1 they are pipelined.

    Raises:
        RuntimeError: If a reply has another status than 200, or none comes.
    """
    n_requests, at = len(requests), start
    poll = select.epoll()
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    by_fd = {}
    for one in sockets:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(one.fileno(), select.EPOLLIN)
        by_fd[one.fileno()] = (one.recv, one.sendall)
    rest: dict[int, bytes] = {}
    owed = dict.fromkeys(by_fd, in_flight)
    answered = 0
    try:
        cpu, began = time.process_time(), time.perf_counter()
        end = began + seconds if not count else float("inf")
        for _, send in by_fd.values():
            send(b"".join([requests[(at + k) % n_requests] for k in range(in_flight)]))
            at += in_flight
        sent = at - start
        most = count or sys.maxsize
        now = last = began
        while now < end and answered < most:
            ready = poll.poll(1.0)
            now = time.perf_counter()
            if ready:
                last = now
            elif now > last + _STALL_SECONDS:
                raise RuntimeError(f"no reply within {_STALL_SECONDS:g} s")
            for fd, _ in ready:
                recv, send = by_fd[fd]
                data = recv(_READ)
                if fd in rest:
                    data = rest.pop(fd) + data
                n, left = _whole(data)
                if left:
                    rest[fd] = left
                if not n:
                    continue
                answered += n
                owed[fd] -= n
                # Pipelined requests leave as a window when its replies are there.
                if owed[fd] or sent >= most:
                    continue
                if in_flight == 1:
                    send(requests[at % n_requests])
                else:
                    send(b"".join([requests[(at + k) % n_requests] for k in range(in_flight)]))
                at += in_flight
                sent += in_flight
                owed[fd] = in_flight
        took = time.perf_counter() - began
        return Driven(answered=answered, seconds=took, busy=(time.process_time() - cpu) / took)
    finally:
        poll.close()
        for one in sockets:
            one.close()


def _whole(data: bytes) -> tuple[int, bytes]:
    # How many replies have come whole, and what is left of the next.
    n = at = 0
    if not data:
        raise RuntimeError("the server has closed a connection")
    while True:
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            return n, data[at:]
        if data[at + 8 : at + 13] != b" 200 ":
            raise RuntimeError(f"refused: {data[at : at + 600]!r}")
        where = data.find(b"ontent-", at, end)
        while where >= 0 and data[where + 7 : where + 15].lower() != b"length: ":
            where = data.find(b"ontent-", where + 7, end)
        if where < 0:
            # Chunked, and then nothing but this reply is under way.
            whole = data.endswith(b"0\r\n\r\n")
            return (n + 1, b"") if whole else (n, data[at:])
        stop = data.find(b"\r", where)
        at_end = end + 4 + int(data[where + 15 : stop])
        if len(data) < at_end:
            return n, data[at:]
        n += 1
        if len(data) == at_end:
            return n, b""
        at = at_end


def spread(values: Sequence[float]) -> str:
    """Writes a median with the least and the largest value."""
    return f"{statistics.median(values):,.4g} ({min(values):,.4g} to {max(values):,.4g})"


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Returns an interval for the median by order statistics, of at least this level; the ends where there are few."""
    ordered = sorted(values)
    # Of equal chances that a value lies below the median, all but the tails.
    cut = max(int(binom.ppf((1 - level) / 2, len(ordered), 0.5)), 1)
    return ordered[cut - 1], ordered[-cut]
