"""Load from an open loop: requests leave when they are due, whatever the answers do, and count from then on.

So a server that stands still for half a second is seen by all who would have come in that time (no coordinated
omission). One request at a time is on a connection; one that finds none free waits, and its clock runs.
"""

import functools
import itertools
import math
import multiprocessing
import resource
import select
import socket
import time
import urllib.parse
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitok.errors import InvalidInput, ServiceError
from vitok.serving.load_report import LoadReport
from vitok.stats import LatencyHistogram

_READ = 262_144
_KNOWN_HEADS = 1024
_CHUNK = 65_536
_OTHER_FILES = 64
_SCAN_NS = 50_000_000
_RETRY_NS = 50_000_000


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests go, and what they say.

    Args:
        url: Such as `http://127.0.0.1:8000/v2/models/fraud/infer`.
        bodies: Bodies of POSTs, sent in turn; none for GETs. Give many that differ: a row sent again and again is
            learned by the branch predictor and flatters trees.
        headers: More headers, such as that of a key.
        media_type: Type of the bodies.

    Raises:
        InvalidInput: If the address is not one of plain HTTP, or a header does not fit on one line.

    Example:
        >>> Target(url="http://localhost:8000/ready").host
        'localhost'
    """

    url: str
    bodies: Sequence[bytes] = field(default=(), repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str = "application/json"

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            sound = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
        except ValueError:
            sound = False
        if not sound or not self.url.isascii() or any(sign <= " " for sign in self.url):
            fix = "TLS is not spoken: ask the service before it" if self.url.startswith("https:") else ""
            raise InvalidInput("url", self.url, "look like http://host:port/path", fix)
        for name, value in self.headers.items():
            if not (name + value).isascii() or not (name + value).isprintable() or ":" in name:
                raise InvalidInput("headers", name, "be ASCII on one line")

    @property
    def host(self) -> str:
        """Name or address of the server."""
        return urllib.parse.urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """Its port."""
        return urllib.parse.urlsplit(self.url).port or 80

    def requests(self) -> list[bytes]:
        """Returns the requests as they go over the wire."""
        parts = urllib.parse.urlsplit(self.url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [
            f"host: {parts.netloc.rpartition('@')[2]}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        if not self.bodies:
            return ["\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode()]
        head = "\r\n".join([f"POST {path} HTTP/1.1", *lines, f"content-type: {self.media_type}", "content-length: "])
        return [b"%b%d\r\n\r\n%b" % (head.encode(), len(body), body) for body in self.bodies]


def varied(template: str, *, width: int, n: int = 4096, seed: int = 0) -> list[bytes]:
    """Makes bodies of one template, each with a row of its own.

    Args:
        template: The body, with `$ROW` where the numbers of a row go, separated by commas.
        width: How many numbers a row has.
        n: How many bodies.
        seed: Seed of the standard normal numbers.

    Raises:
        InvalidInput: If the template has no `$ROW`, or a number is below 1.

    Example:
        >>> varied('{"data": [$ROW]}', width=2, n=1)
        [b'{"data": [0.125730,-0.132105]}']
    """
    if "$ROW" not in template:
        raise InvalidInput("template", template[:80], "hold $ROW where the numbers go")
    for name, value in (("width", width), ("n", n)):
        if value < 1:
            raise InvalidInput(name, value, "be at least 1")
    rows = np.random.default_rng(seed).normal(size=(n, width))
    return [template.replace("$ROW", ",".join([f"{value:.6f}" for value in row])).encode() for row in rows.tolist()]


def run_load(
    target: Target,
    *,
    rate: float | None,
    seconds: float,
    connections: int = 32,
    poisson: bool = True,
    deadline: float | None = None,
    timeout: float = 10.0,
    processes: int = 1,
    seed: int = 0,
) -> LoadReport:
    """Sends for a while and reports.

    Args:
        target: Where and what.
        rate: Requests a second; None sends the next on each connection as soon as it has its answer (closed loop),
            which finds the highest rate and says little of latency.
        seconds: How long requests are due, above 0.
        connections: How many connections are kept open, at least 1 a process.
        poisson: Whether the times between requests are exponential; else they are all the same.
        deadline: Seconds within which an answer is good; None for any time.
        timeout: Seconds after which a request is given up, counted from its sending.
        processes: How many processes send; their histograms are merged.
        seed: Seed of the times.

    Raises:
        InvalidInput: If a number is out of its range.
        ServiceError: If nobody accepts connections there.
    """
    if rate is not None and not 0 < rate < math.inf:
        raise InvalidInput("rate", rate, "be a finite number of requests a second, above 0")
    for name, value in (
        ("seconds", seconds),
        ("timeout", timeout),
        ("deadline", 1.0 if deadline is None else deadline),
    ):
        if not 0 < value < math.inf:
            raise InvalidInput(name, value, "be a finite number of seconds above 0")
    if processes < 1:
        raise InvalidInput("processes", processes, "be at least 1")
    if connections < processes:
        raise InvalidInput("connections", connections, f"be at least {processes}, one for each process")
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES
    if allowed + _OTHER_FILES != resource.RLIM_INFINITY and -(-connections // processes) > allowed:
        rule = f"be at most {allowed * processes}, which the files that a process may open allow"
        raise InvalidInput("connections", connections, rule, "Raise it with ulimit -n, or add processes")
    share = None if rate is None else rate / processes
    deadline_us = None if deadline is None else 1e6 * deadline
    plans = [
        _Plan(
            target,
            share,
            seconds,
            connections // processes + (i < connections % processes),
            poisson,
            deadline_us,
            timeout,
            seed + i,
        )
        for i in range(processes)
    ]
    if processes == 1:
        return _send(plans[0])
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        # One process that cannot connect must not leave the others waiting.
        return functools.reduce(LoadReport.merged, pool.map(_send, plans, chunksize=1))


class _Plan(NamedTuple):
    target: Target
    rate: float | None
    seconds: float
    connections: int
    poisson: bool
    deadline_us: float | None
    timeout: float
    seed: int


class _Head(NamedTuple):
    status: int
    length: int
    closing: bool
    retry_after: bool


class _Broken(Exception):  # noqa: N818
    # A connection that cannot be read any further.
    pass


class _Line:
    # A connection with at most one request on it.
    __slots__ = ("buffer", "due", "fd", "outgoing", "recv", "send", "sent", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.fd = connection.fileno()
        self.recv = connection.recv
        self.send = connection.send
        self.buffer = b""
        self.outgoing: memoryview | None = None
        self.due = self.sent = 0


def _due(plan: _Plan) -> Iterator[list[int]]:
    # Nanoseconds from the start, in lists; the last is the end.
    assert plan.rate is not None  # noqa: S101
    rng = np.random.default_rng(plan.seed)
    gap, end, at, sent = 1e9 / plan.rate, 1e9 * plan.seconds, 0.0, 0
    while at < end:
        if plan.poisson:
            times: NDArray[np.float64] = np.cumsum(rng.exponential(gap, _CHUNK)) + at
            at = float(times[-1])
        else:
            times = gap * np.arange(sent, sent + _CHUNK, dtype=np.float64)
            sent += _CHUNK
            at = gap * sent
        yield times[times < end].astype(np.int64).tolist()


def _send(plan: _Plan) -> LoadReport:
    return _Sender(plan).run()


class _Sender:
    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        # The processes begin at different places, so that they do not send the same rows side by side.
        requests = plan.target.requests()
        start = plan.seed * 97 % len(requests)
        self._next = itertools.cycle(requests[start:] + requests[:start]).__next__
        # Opened before the connections: select() takes only low numbers, and waits to the microsecond.
        self._poll = select.epoll()
        self._lines: dict[int, _Line] = {}
        self._idle: list[_Line] = []
        self._heads: dict[bytes, _Head] = {}
        self._answers: list[tuple[int, int, int]] = []
        self._lost: list[int] = []
        self._latency, self._service, self._lateness = LatencyHistogram(), LatencyHistogram(), LatencyHistogram()
        self._by_status: dict[int, LatencyHistogram] = {}
        self._broken = self._timed_out = self._in_time = self._unasked = 0
        self._missing = 0
        self._retry_at = 0

    def run(self) -> LoadReport:
        plan = self._plan
        try:
            for _ in range(plan.connections):
                self._connect(plan.timeout)
            cpu, began = time.process_time(), time.perf_counter_ns()
            offered, starved = self._open(began) if plan.rate is not None else self._closed(began)
            seconds = (time.perf_counter_ns() - began) / 1e9
            cpu = time.process_time() - cpu
        except OSError as error:
            target = plan.target
            raise ServiceError(f"no connection to {target.host}:{target.port}: {error}") from error
        finally:
            for line in self._lines.values():
                line.socket.close()
            self._poll.close()
        self._settle()
        return LoadReport(
            latency=self._latency,
            service=self._service,
            by_status=dict(sorted(self._by_status.items())),
            lateness=self._lateness,
            offered=offered,
            broken=self._broken,
            timed_out=self._timed_out,
            starved=starved,
            in_time=self._in_time,
            unasked=self._unasked,
            rate=plan.rate,
            deadline_us=plan.deadline_us,
            seconds=seconds,
            cpu_share=cpu / seconds,
        )

    def _open(self, began: int) -> tuple[int, int]:
        backlog: deque[int] = deque()
        lateness: list[int] = []
        offered = starved = 0
        clock, idle, lines = time.perf_counter_ns, self._idle, self._lines
        last = began + int(1e9 * self._plan.seconds)
        end = last + int(1e9 * self._plan.timeout)
        scan = began + _SCAN_NS
        source = itertools.chain.from_iterable(_due(self._plan))
        upcoming = next(source, None)
        while True:
            now = clock()
            while upcoming is not None and began + upcoming <= now:
                due = began + upcoming
                lateness.append(now - due)
                offered += 1
                if idle and not backlog:
                    self._give(idle.pop(), due, clock())
                else:
                    starved += 1
                    backlog.append(due)
                upcoming = next(source, None)
            while backlog and idle:
                self._give(idle.pop(), backlog.popleft(), clock())
            if upcoming is None and not backlog and len(idle) == len(lines):
                break
            if now >= scan:
                self._look_after(now)
                if len(lateness) >= _CHUNK:
                    self._lateness.record_many(np.array(lateness) / 1e3)
                    lateness.clear()
                scan = now + _SCAN_NS
                if now >= end:
                    break
            until = scan if upcoming is None else min(scan, began + upcoming)
            wait = until - clock()
            if wait > 0:
                select.select((self._poll,), (), (), wait / 1e9)
            self._collect()
        now = clock()
        # What nobody took counts as given up, with the time that it has waited.
        self._lost += [now - due for due in backlog]
        self._timed_out += len(backlog)
        for line in list(lines.values()):
            if line.due:
                self._timed_out += 1
                self._lost.append(now - line.due)
        self._lateness.record_many(np.array(lateness) / 1e3)
        return offered, starved

    def _closed(self, began: int) -> tuple[int, int]:
        clock, idle = time.perf_counter_ns, self._idle
        end = began + int(1e9 * self._plan.seconds)
        scan = began + _SCAN_NS
        offered, now = 0, began
        while now < end:
            while idle:
                now = clock()
                self._give(idle.pop(), now, now)
                offered += 1
            if now >= scan:
                self._look_after(now)
                scan = now + _SCAN_NS
            self._collect(0.05)
            now = clock()
        # Those under way at the end were cut off by us, and count neither way.
        return offered - sum(line.due > 0 for line in self._lines.values()), 0

    def _give(self, line: _Line, due: int, now: int) -> None:
        request = self._next()
        line.due, line.sent = due, now
        try:
            sent = line.send(request)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(line)
            return
        if sent < len(request):
            line.outgoing = memoryview(request)[sent:]
            self._poll.modify(line.fd, select.EPOLLIN | select.EPOLLOUT)

    def _collect(self, wait: float = 0.0) -> None:
        lines, heads, answers, idle = self._lines, self._heads, self._answers, self._idle
        clock = time.perf_counter_ns
        for fd, event in self._poll.poll(wait):
            line = lines[fd]
            if event & select.EPOLLOUT and not self._push(line):
                continue
            if not event & ~select.EPOLLOUT:
                continue
            try:
                data = line.recv(_READ)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                self._drop(line)
                continue
            if line.buffer:
                data = line.buffer + data
            end = data.find(b"\r\n\r\n")
            head = heads.get(data[:end]) if end >= 0 else None
            if head is None or head.length < 0 or len(data) != end + 4 + head.length or head.status < 200:
                try:
                    head = self._slowly(line, data)
                except _Broken:
                    self._drop(line)
                    continue
                if head is None:
                    continue
            if not line.due:
                # An answer that nobody asked for, such as that to a connection which has been idle too long.
                self._drop(line)
                continue
            now = clock()
            answers.append((now - line.due, now - line.sent, head.status))
            if not head.retry_after and head.status in (429, 503):
                self._unasked += 1
            line.due = 0
            line.buffer = b""
            if head.closing:
                self._drop(line)
            else:
                idle.append(line)
        if len(answers) >= _CHUNK:
            self._settle()

    def _push(self, line: _Line) -> bool:
        if line.outgoing is None:
            return True
        try:
            line.outgoing = line.outgoing[line.send(line.outgoing) :]
        except BlockingIOError:
            return True
        except OSError:
            self._drop(line)
            return False
        if not line.outgoing:
            line.outgoing = None
            self._poll.modify(line.fd, select.EPOLLIN)
        return True

    def _slowly(self, line: _Line, data: bytes) -> _Head | None:
        # A reply that has not come whole, whose head is new, or that is chunked; None where more must come.
        while True:
            end = data.find(b"\r\n\r\n")
            line.buffer = data
            if end < 0:
                return None
            raw = data[:end]
            head = self._heads.get(raw)
            if head is None:
                head = _read_head(raw)
                if len(self._heads) >= _KNOWN_HEADS:
                    self._heads.clear()
                self._heads[raw] = head
            if head.status >= 200:
                break
            data = data[end + 4 :]
        length = head.length if head.length >= 0 else _chunked(data, end + 4)
        have = len(data) - end - 4
        if length is None or have < length:
            return None
        if have > length:
            raise _Broken
        return head

    def _look_after(self, now: int) -> None:
        # Gives up what takes too long, and opens connections anew.
        limit = now - int(1e9 * self._plan.timeout)
        for line in [line for line in self._lines.values() if line.due and line.sent < limit]:
            self._lost.append(now - line.due)
            self._timed_out += 1
            line.due = 0
            self._drop(line)
        if self._missing and now >= self._retry_at:
            try:
                while self._missing:
                    self._connect()
                    self._missing -= 1
            except OSError:
                self._retry_at = now + _RETRY_NS

    def _drop(self, line: _Line) -> None:
        # The request on it is lost; another connection takes its place.
        if line.due:
            self._broken += 1
            self._lost.append(time.perf_counter_ns() - line.due)
            line.due = 0
        elif line in self._idle:
            self._idle.remove(line)
        del self._lines[line.fd]
        line.socket.close()
        try:
            self._connect()
        except OSError:
            self._missing += 1

    def _connect(self, patience: float = 1.0) -> None:
        target = self._plan.target
        connection = socket.create_connection((target.host, target.port), timeout=patience)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        line = _Line(connection)
        self._lines[line.fd] = line
        self._poll.register(line.fd, select.EPOLLIN)
        self._idle.append(line)

    def _settle(self) -> None:
        limit = self._plan.deadline_us
        if self._answers:
            array = np.array(self._answers)
            latency, status = array[:, 0] / 1e3, array[:, 2]
            self._latency.record_many(latency)
            self._service.record_many(array[:, 1] / 1e3)
            for code in np.unique(status).tolist():
                self._by_status.setdefault(code, LatencyHistogram()).record_many(latency[status == code])
            good = status < 400
            self._in_time += int((good if limit is None else good & (latency <= limit)).sum())
            self._answers.clear()
        self._latency.record_many(np.array(self._lost) / 1e3)
        self._lost.clear()


def _read_head(raw: bytes) -> _Head:
    lines = raw.split(b"\r\n")
    words = lines[0].split(b" ", 2)
    if not words[0].startswith(b"HTTP/1.") or len(words) < 2 or not words[1].isdigit():
        raise _Broken
    status = int(words[1])
    headers = {
        name.strip().lower(): value.strip().lower() for name, _, value in (item.partition(b":") for item in lines[1:])
    }
    said = headers.get(b"content-length", b"")
    if b"chunked" in headers.get(b"transfer-encoding", b""):
        length = -1
    elif said.isdigit():
        length = int(said)
    elif status < 200 or status in (204, 304):
        length = 0
    else:
        raise _Broken
    closing = headers.get(b"connection") == b"close" or words[0] == b"HTTP/1.0"
    return _Head(status, length, closing, b"retry-after" in headers)


def _chunked(data: bytes, at: int) -> int | None:
    # How many bytes the chunks take, from `at` on; None where the last is not there yet.
    begin = at
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        try:
            size = int(data[at:end].split(b";")[0], 16)
        except ValueError:
            raise _Broken from None
        if size:
            at = end + 2 + size + 2
        else:
            # Trailers are as rare as they are useless here: each line up to the empty one is passed over.
            while (line := data.find(b"\r\n", end + 2)) > end + 2:
                end = line
            return line + 2 - begin if line >= 0 else None
