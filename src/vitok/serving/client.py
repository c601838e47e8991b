"""A client for replays and load: one connection, many requests in flight, answers in order."""

import http.client
import math
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from vitok.errors import InvalidInput, ServiceError
from vitok.stats import LatencyHistogram

_READ = 262_144
_HIGHEST_SELECTABLE = 1023
_KNOWN_HEADS = 1024

OnReply = Callable[[int, int, bytes], None]


class ConnectionBroken(ServiceError):  # noqa: N818
    """The connection ended before all was answered.

    Attributes:
        acknowledged: How many requests were answered, from the first on; go on from there. Those behind may have been
            handled as well, so send them again with the same request ids.
    """

    def __init__(self, reason: str, acknowledged: int) -> None:
        self.acknowledged = acknowledged
        super().__init__(f"{reason}; {acknowledged} requests were answered")


@dataclass(frozen=True)
class Answer:
    """A reply.

    Attributes:
        status: Status code of HTTP.
        body: The body.
    """

    status: int
    body: bytes


@dataclass(frozen=True, kw_only=True)
class PacedReport:
    """What an open-loop run measured.

    Attributes:
        latency: From the time a request was meant to be sent until its reply was read.
        lateness: From the time a request was meant to be sent until it was given to the connection: the share of
            `latency` that is the client's own, or the server's refusal to read.
        sent: How many requests were sent; all were answered.
        errors: How many replies had a status of 400 or more.
        offered_rate: Requests a second that were meant to be sent.
        achieved_rate: Replies a second, from the first intended time to the last reply.
    """

    latency: LatencyHistogram
    lateness: LatencyHistogram
    sent: int
    errors: int
    offered_rate: float
    achieved_rate: float

    def __str__(self) -> str:
        return (
            f"{self.sent:,} requests at {self.offered_rate:,.6g}/s offered, {self.achieved_rate:,.6g}/s achieved, "
            f"{self.errors:,} errors; latency from intended send: {self.latency}"
        )


class PipelinedClient:
    """Sends POSTs of JSON to one path over one connection, without waiting for each answer.

    Answers come in the order of the requests (RFC 9112, section 9.3.2), so a stream of events keeps its order. Not
    made for several threads; a connection is opened when it is first needed, and again after the server has closed an
    idle one.

    Args:
        host: Address of the service.
        port: Its port.
        path: Path of the POSTs.
        window: Most requests in flight for `send_all`, at least 1.
        timeout: Seconds without any progress after which a connection counts as broken.

    Raises:
        InvalidInput: If an argument is out of its range.
    """

    def __init__(self, host: str, port: int, path: str, *, window: int = 64, timeout: float = 30.0) -> None:
        if not path.startswith("/") or not path.isascii() or any(sign <= " " for sign in path):
            raise InvalidInput("path", path, "be ASCII without blanks and start with a slash")
        if window < 1:
            raise InvalidInput("window", window, "be at least 1")
        if not timeout > 0:
            raise InvalidInput("timeout", timeout, "be longer than zero")
        self._host = host
        self._port = port
        self._window = window
        self._timeout = timeout
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._head = (
            f"POST {path} HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/json\r\ncontent-length: "
        ).encode()
        self._socket: socket.socket | None = None
        self._replies = _Replies()

    def send_all(self, bodies: Iterable[bytes], on_reply: OnReply) -> int:
        """Sends all bodies and hands over each reply, in order.

        Args:
            bodies: The bodies; taken one by one, at most `window` ahead of the replies.
            on_reply: Gets the number of the request from 0, the status and the body.

        Returns:
            How many requests were answered.

        Raises:
            ConnectionBroken: If the connection cannot be made, breaks, or stands still; says how many were answered.
        """
        source, head, window = iter(bodies), self._head, self._window
        connection = self._connected(0)
        outgoing = memoryview(b"")
        taken = answered = 0
        exhausted = False
        try:
            while True:
                if not exhausted and not outgoing:
                    parts = []
                    for body in _at_most(source, window - (taken - answered)):
                        parts.append(b"%b%d\r\n\r\n%b" % (head, len(body), body))
                    exhausted = taken - answered + len(parts) < window
                    taken += len(parts)
                    outgoing = memoryview(b"".join(parts))
                    if outgoing and self._socket is None:
                        connection = self._connected(answered)
                if outgoing:
                    outgoing = outgoing[_send(connection, outgoing, answered) :]
                if taken == answered and exhausted and not outgoing:
                    break
                self._await(connection, answered, self._timeout, writing=bool(outgoing))
                for status, body in self._replies.read(connection, answered):
                    # Counted first: a reply whose handler fails has still been given.
                    answered += 1
                    on_reply(answered - 1, status, body)
                if self._replies.closing:
                    if taken > answered:
                        raise ConnectionBroken("the server closed the connection", answered)
                    # Nothing is in flight, so another connection can take up what is left.
                    self.close()
        except BaseException:
            # What is still in flight must not be taken for the answers of the next call.
            self.close()
            raise
        return answered

    def paced(self, bodies: Iterable[bytes], rate: float, *, on_reply: OnReply | None = None) -> PacedReport:
        """Sends at a fixed rate whatever the answers do, and measures from the time each was meant to be sent.

        So a server that stands still for a second is seen by all who would have come in that second (no coordinated
        omission). Nothing bounds what is in flight.

        Args:
            bodies: The bodies.
            rate: Requests a second, above 0.
            on_reply: As in `send_all`.

        Raises:
            InvalidInput: If the rate is no positive number.
            ConnectionBroken: As `send_all`.
        """
        if not 0 < rate < math.inf:
            raise InvalidInput("rate", rate, "be a finite number of requests a second, above 0")
        latency, lateness = LatencyHistogram(), LatencyHistogram()
        source, gap = iter(bodies), 1e9 / rate
        connection = self._connected(0)
        outgoing = memoryview(b"")
        intended: deque[int] = deque()
        sent = answered = errors = 0
        upcoming = next(source, None)
        started = last = time.perf_counter_ns()
        try:
            while upcoming is not None or intended:
                now = time.perf_counter_ns()
                # What the socket did not take goes first, so that waiting for it counts as lateness of the next.
                if not outgoing:
                    parts = []
                    while upcoming is not None and (due := started + round(sent * gap)) <= now:
                        parts.append(b"%b%d\r\n\r\n%b" % (self._head, len(upcoming), upcoming))
                        intended.append(due)
                        lateness.record((now - due) / 1000)
                        sent += 1
                        upcoming = next(source, None)
                    outgoing = memoryview(b"".join(parts))
                if outgoing:
                    outgoing = outgoing[_send(connection, outgoing, answered) :]
                patience = self._timeout
                if upcoming is not None and not outgoing:
                    patience = min(patience, max(0.0, (started + round(sent * gap) - time.perf_counter_ns()) / 1e9))
                ready = self._await(
                    connection, answered, patience, writing=bool(outgoing), strict=patience >= self._timeout
                )
                if not ready:
                    continue
                for status, body in self._replies.read(connection, answered):
                    last = time.perf_counter_ns()
                    latency.record((last - intended.popleft()) / 1000)
                    errors += status >= 400
                    answered += 1
                    if on_reply is not None:
                        on_reply(answered - 1, status, body)
                if self._replies.closing and (upcoming is not None or intended):
                    raise ConnectionBroken("the server closed the connection", answered)
        except BaseException:
            self.close()
            raise
        if self._replies.closing:
            self.close()
        seconds = (last - started) / 1e9
        return PacedReport(
            latency=latency,
            lateness=lateness,
            sent=sent,
            errors=errors,
            offered_rate=rate,
            achieved_rate=answered / seconds if seconds > 0 else math.nan,
        )

    def get(self, path: str) -> Answer:
        """Fetches a path over a connection of its own.

        Raises:
            ServiceError: If there is no answer.
        """
        return self._request("GET", path, None)

    def post(self, path: str, body: bytes) -> Answer:
        """Posts JSON to a path over a connection of its own.

        Raises:
            ServiceError: If there is no answer.
        """
        return self._request("POST", path, body)

    def close(self) -> None:
        """Closes the connection; the next call opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._replies = _Replies()

    def __enter__(self) -> "PipelinedClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, method: str, path: str, body: bytes | None) -> Answer:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        headers = (
            {"connection": "close"} if body is None else {"connection": "close", "content-type": "application/json"}
        )
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.read())
        except (OSError, http.client.HTTPException) as error:
            raise ServiceError(f"{method} {path} at {self._host}:{self._port} got no answer: {error!r}") from error
        finally:
            connection.close()

    def _connected(self, answered: int) -> socket.socket:
        if self._socket is not None and select.select([self._socket], [], [], 0)[0]:
            # Nothing is in flight, so this is the end of the connection (or noise, which is as bad).
            self.close()
        if self._socket is None:
            try:
                connection = socket.create_connection((self._host, self._port), timeout=self._timeout)
            except OSError as error:
                raise ConnectionBroken(f"no connection to {self._host}:{self._port}: {error}", answered) from error
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(0)
            self._socket = connection
            if connection.fileno() > _HIGHEST_SELECTABLE:
                self.close()
                raise ConnectionBroken(f"more than {_HIGHEST_SELECTABLE} files are open in this process", answered)
        return self._socket

    def _await(
        self, connection: socket.socket, answered: int, seconds: float, *, writing: bool, strict: bool = True
    ) -> bool:
        # select, not poll: its timeout counts microseconds, which pacing needs.
        watched = [connection]
        readable, writable, _ = select.select(watched, watched if writing else (), (), seconds)
        if strict and not readable and not writable:
            raise ConnectionBroken(f"nothing has moved for {seconds:g} s", answered)
        return bool(readable)


class _Replies:
    # Takes replies apart by Content-Length. Heads repeat (only the date and the length change), so each is read once.
    def __init__(self) -> None:
        self._buffer = bytearray()
        self._heads: dict[bytes, tuple[int, int, bool]] = {}
        self.closing = False

    def read(self, connection: socket.socket, answered: int) -> Iterator[tuple[int, bytes]]:
        try:
            data = connection.recv(_READ)
        except BlockingIOError:
            return
        except OSError as error:
            raise ConnectionBroken(f"the connection broke: {error}", answered) from error
        if not data:
            raise ConnectionBroken("the server closed the connection", answered)
        buffer = self._buffer
        buffer += data
        place = 0
        try:
            while (end := buffer.find(b"\r\n\r\n", place)) >= 0:
                head = bytes(buffer[place:end])
                known = self._heads.get(head)
                if known is None:
                    known = self._learn(head, answered)
                status, length, closing = known
                after = end + 4 + length
                if after > len(buffer):
                    break
                place = after
                if status >= 200:
                    answered += 1
                    self.closing = self.closing or closing
                    yield status, bytes(buffer[end + 4 : after])
                    if closing:
                        return
        finally:
            del buffer[:place]

    def _learn(self, head: bytes, answered: int) -> tuple[int, int, bool]:
        lines = head.split(b"\r\n")
        words = lines[0].split(b" ", 2)
        if not words[0].startswith(b"HTTP/1.") or len(words) < 2 or not words[1].isdigit():
            raise ConnectionBroken(f"not a reply of HTTP/1.1: {lines[0][:80]!r}", answered)
        status, closing = int(words[1]), False
        length = 0 if status < 200 or status in (204, 304) else -1
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            name = name.lower()
            if name == b"content-length" and length < 0:
                if not value.strip().isdigit():
                    raise ConnectionBroken(f"a reply with the Content-Length {value[:80]!r}", answered)
                length = int(value)
            elif name == b"connection":
                closing = b"close" in value.lower()
        if length < 0:
            raise ConnectionBroken("a reply without Content-Length cannot be pipelined", answered)
        if len(self._heads) >= _KNOWN_HEADS:
            self._heads.clear()
        known = self._heads[head] = (status, length, closing)
        return known


def _send(connection: socket.socket, data: memoryview, answered: int) -> int:
    try:
        return connection.send(data)
    except BlockingIOError:
        return 0
    except (BrokenPipeError, ConnectionResetError):
        # Replies that came before the break are still to be read; reading then reports the end.
        return len(data)
    except OSError as error:
        raise ConnectionBroken(f"the connection broke: {error}", answered) from error


def _at_most(source: Iterator[bytes], count: int) -> Iterator[bytes]:
    for _ in range(count):
        try:
            yield next(source)
        except StopIteration:
            return
