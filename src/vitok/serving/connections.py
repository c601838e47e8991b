"""Connections to one HTTP/1.1 server that are kept open and used again, one request at a time on each.

It reads replies with httptools, knows nothing of redirects or cookies, and drops a connection as soon as anything on
it is not as it should be: an answer that comes too late must never be taken for that of the next request.
"""

import asyncio
import ssl
import urllib.parse
from pathlib import Path
from typing import Any, cast

from vitok.errors import InvalidInput, MissingExtra, ServiceError

MAX_ANSWER = 64 * 1024 * 1024


class Answered:
    """A complete reply.

    Attributes:
        status: Status code.
        headers: Names in lower case with their values.
        body: The body.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: dict[bytes, bytes], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


class _Connection(asyncio.Protocol):
    def __init__(self, parser: Any, owner: "Connections") -> None:
        self._parser_class = parser
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answered] | None = None
        self._fresh = True
        self._start()

    def _start(self) -> None:
        # One parser a reply: what follows a reply that was not asked for cannot leak into the next.
        self._parser = self._parser_class(self)
        self._headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._size = 0
        self.touched = False

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def reused(self) -> bool:
        return not self._fresh

    def send(self, data: bytes) -> "asyncio.Future[Answered]":
        assert self._transport is not None  # noqa: S101
        self._start()
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return self._waiting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._owner.remember(self)

    def data_received(self, data: bytes) -> None:
        self.touched = True
        if self._waiting is None or self._waiting.done():
            # Nobody has asked, or nobody waits any more.
            self.drop()
            return
        import httptools

        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"what came is no reply of HTTP/1.1: {error!r}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.forget(self)
        if self._waiting is not None and not self._waiting.done():
            begun = "in the middle of its answer" if self.touched else "without an answer"
            self._fail(f"it closed the connection {begun}" + (f": {exc!r}" if exc else ""))

    def on_message_begin(self) -> None:
        if self._waiting is None or self._waiting.done():
            # A second reply has begun behind the one that was asked for; its rest must not meet the next request.
            self.drop()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._owner.max_answer:
            self._fail(f"its answer is longer than {self._owner.max_answer} bytes")
            return
        self._parts.append(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        waiting = self._waiting
        if status < 200:
            self._headers = {}
            return
        if waiting is None or waiting.done():
            self.drop()
            return
        self._fresh = False
        if not self._parser.should_keep_alive():
            self.drop()
        waiting.set_result(Answered(status, self._headers, b"".join(self._parts)))

    def _fail(self, reason: str) -> None:
        self.drop()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ServiceError(reason))

    def drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Connections:
    """A pool of connections to one server. It belongs to the event loop that first uses it.

    Args:
        url: Scheme, host and port, such as `"http://10.0.0.5:8080"`.
        most: Most connections at a time, which is also the most requests in flight.
        max_answer: Longest body of an answer, in bytes.
        ca: File in PEM of those who vouch for an `https` server; by default whom the system trusts.

    Attributes:
        authority: What the header `host` says.

    Raises:
        InvalidInput: If the URL is not of that kind, or a number is out of its range.
        MissingExtra: If the extra `serve` is not installed.
    """

    def __init__(self, url: str, *, most: int = 64, max_answer: int = MAX_ANSWER, ca: Path | None = None) -> None:
        try:
            import httptools
        except ImportError:
            raise MissingExtra("serve", "calling remote models") from None
        parts = urllib.parse.urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            raise InvalidInput("url", url, "have a port from 0 to 65535") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise InvalidInput("url", url, "be http:// or https:// with a host and no password")
        if any(sign <= " " or sign > "~" for sign in url):
            raise InvalidInput("url", url, "be ASCII without blanks")
        if most < 1:
            raise InvalidInput("most", most, "be at least 1")
        self._parser = httptools.HttpResponseParser
        self._host = parts.hostname
        self._port = port or (443 if parts.scheme == "https" else 80)
        self._tls = _trusting(ca) if parts.scheme == "https" else None
        if ca is not None and self._tls is None:
            raise InvalidInput("ca", str(ca), "go with https://")
        self._most = most
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._opening = 0
        self.max_answer = max_answer
        self.authority = parts.netloc

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._open)

    async def exchange(self, data: bytes) -> Answered:
        """Sends a request and returns the reply; the caller bounds the time by cancelling.

        A request on a connection that the server closed while it was idle is sent again on another one, since the
        server has not read it (RFC 9112, section 9.3.1).

        Raises:
            ServiceError: If there is no connection, or no complete reply.
        """
        while True:
            connection = await self._take()
            try:
                answered = await connection.send(data)
            except ServiceError:
                connection.drop()
                if connection.reused and not connection.touched:
                    continue
                raise
            except BaseException:
                # Given up: an answer that still comes belongs to nobody.
                connection.drop()
                raise
            if connection.usable:
                self._idle.append(connection)
            return answered

    async def _take(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        if len(self._open) + self._opening >= self._most:
            raise ServiceError(f"all {self._most} connections to {self.authority} are in use")
        connection = _Connection(self._parser, self)
        self._opening += 1
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: connection, self._host, self._port, ssl=self._tls
            )
        except OSError as error:
            raise ServiceError(f"no connection to {self.authority}: {error}") from error
        except BaseException:
            # Given up just when it was made.
            connection.drop()
            raise
        finally:
            self._opening -= 1
        return connection

    def remember(self, connection: _Connection) -> None:
        """Counts a connection that is open."""
        self._open.add(connection)

    def forget(self, connection: _Connection) -> None:
        """Takes a connection out that is closed."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def close(self) -> None:
        """Closes all connections."""
        while self._open:
            for connection in tuple(self._open):
                connection.drop()
            # The loop tells a connection in its next turn that it is lost.
            await asyncio.sleep(0)


def _trusting(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput("ca", str(ca), f"be a file of certificates in PEM: {error}") from None
