"""The connection of the hot door: uvicorn's HTTP protocol, with POSTs to hot paths taken off the ASGI road.

It leans on attributes of `uvicorn.protocols.http.httptools_impl.HttpToolsProtocol`; tests/serving/test_protocol.py
holds the list of them, so that a new uvicorn which moves one fails there first.
"""

import asyncio
import time
from typing import Any, ClassVar

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from vitok.serving.asgi import send_reply
from vitok.serving.door import Door, Pending, logger
from vitok.serving.messages import NOTED, Endpoint, HotRequest, Reply, key_header
from vitok.serving.problems import FAULT, problem

MAX_HEAD = 32_768
MAX_HEADERS = 100
REQUEST_SECONDS = 30.0
LINGER_SECONDS = 2.0
MOST_OWED = 1024

_MALFORMED = problem(400, "Bad Request", "The request is not valid HTTP/1.1")
_HEAD_TOO_LARGE = problem(
    431, "Request Header Fields Too Large", f"headers: must be at most {MAX_HEADERS} and {MAX_HEAD} bytes long"
)
_NONE = Reply(200, b"")

_LENGTH, _KEY, _CONNECTION, _NOTED, _EXPECT = 1, 2, 3, 4, 5
_KINDS = {
    b"content-length": _LENGTH,
    b"authorization": _KEY,
    b"x-api-key": _KEY,
    b"connection": _CONNECTION,
    b"expect": _EXPECT,
    **dict.fromkeys(NOTED, _NOTED),
}
_MOST_NAMES = 512
_names: dict[bytes, tuple[bytes, int]] = {}


def _name(sent: bytes) -> tuple[bytes, int]:
    # The name of a header in lower case, and what it is to us. Clients spell a name the same way each time.
    lower = sent.lower()
    found = lower, _KINDS.get(lower, 0)
    if len(_names) < _MOST_NAMES and len(sent) <= 64:
        _names[sent] = found
    return found


class _Stop(Exception):  # noqa: N818
    # Leaves the parser from within one of its callbacks.
    pass


class _Flow(FlowControl):
    # A client that does not read its replies is not read either.
    def resume_reading(self) -> None:
        if not self.write_paused and not self._transport.is_closing():
            super().resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.resume_reading()


class HotProtocol(HttpToolsProtocol):
    """One connection; subclasses name the door that it belongs to.

    Attributes:
        owed: How many hot requests of this connection have no reply yet.
        deaf: Whether all that still comes in is thrown away.
        finishing: Whether the connection closes when nothing is owed any more.
    """

    door: ClassVar[Door]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.owed = 0
        self.deaf = False
        self.finishing = False
        self._lingering = False
        self._endpoint: Endpoint | None = None
        self._body: bytes | bytearray = b""
        self._length = b""
        # Whether none of the headers that an endpoint looks for has come, and whether one named `connection` has.
        self._plain, self._told_connection = True, False
        self._shown: bytes | None = None
        self._keep = True
        # Within a message, within its head, and how much has come in without a step forward (-1: in this chunk).
        self._open = self._in_head = self._upgrading = False
        self._stuck = -1
        self._large_chunk = False
        self._arrived = 0
        self._now = self._began = self.loop.time()
        self._settled: asyncio.Future[None] | None = None
        self._peer = ""

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock of the connection: also one that never sends anything is closed."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._peer = self.client[0] if self.client else ""
        self._watch(float(self.timeout_keep_alive))

    def connection_lost(self, exc: Exception | None) -> None:
        """Lets go of everything; requests already taken are still answered, to nobody."""
        self.deaf = True
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._settle()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Stays open for writing while something is owed to a client that has closed its side."""
        self.finishing = True
        if self._lingering:
            return False
        if self._asgi_busy():
            self.cycle.keep_alive = False
            return not self.cycle.more_body
        return self.owed > 0

    def shutdown(self) -> None:
        """Closes when nothing is owed any more."""
        if self._asgi_busy():
            self.cycle.keep_alive = False
        elif self.owed:
            self.finishing = True
        else:
            self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Closes a connection that has been idle too long, or has had a request half sent for too long."""
        self.timeout_keep_alive_task = None
        if self.transport.is_closing():
            return
        left = self._began + (REQUEST_SECONDS if self._open else self.timeout_keep_alive) - self.loop.time()
        if left > 0 or (not self._open and (self.owed or self._asgi_busy())):
            self._watch(max(left, 1.0))
        else:
            self.transport.close()

    def _watch(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _asgi_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # Reading

    def data_received(self, data: bytes) -> None:
        """Feeds the parser, whose callbacks do the rest."""
        if self.deaf:
            return
        self._arrived = time.perf_counter_ns()
        self._now = self.loop.time()
        self._large_chunk = len(data) > MAX_HEAD
        if self.server_state.default_headers is not self.door.common:
            self.door.use_headers(self.server_state.default_headers)
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._feed_again(data, upgrade)
        except httptools.HttpParserError as error:
            self._broken(error)
            return
        if self._open:
            # Heads, trailers and chunk extensions all grow inside the parser, out of sight.
            self._stuck = self._stuck + len(data) if self._stuck >= 0 else 0
            if self._stuck > MAX_HEAD:
                self._refuse(_HEAD_TOO_LARGE)

    def _feed_again(self, data: bytes, upgrade: Any) -> None:
        while True:
            data = self._without_upgrade() + data[upgrade.args[0] :]
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as another:
                upgrade = another
            else:
                return

    def _without_upgrade(self) -> bytes:
        # Some clients offer HTTP/2 with their first POST. The offer may be ignored, but the parser, once it has seen
        # one, takes the body for the other protocol: so the head is read again, without the offer, by a new parser.
        self._upgrading = False
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise httptools.HttpParserError("there is no tunnel here")
        head = [b"%b %b HTTP/%b\r\n" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                head.append(b"connection: close\r\n" if b"close" in value.lower() else b"")
            elif name not in (b"upgrade", b"http2-settings"):
                head.append(b"%b: %b\r\n" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"".join([*head, b"\r\n"])

    def on_message_begin(self) -> None:
        """Notes the start of a request; what ASGI needs for it is made only when it takes that road."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._length = b""
        self._plain, self._told_connection = True, False
        self._shown = None
        self._stuck = -1
        self._open = self._in_head = True
        self._began = self._now

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keeps a header; a trailer is dropped, since a body must not change what was decided on the head."""
        if not self._in_head:
            return
        name, kind = _names.get(name) or _name(name)
        if kind:
            if kind == _LENGTH:
                self._length = value
            elif kind == _KEY:
                if self._shown is None:
                    # As nearly all write it.
                    usual = name == b"authorization" and value.startswith(b"Bearer ")
                    self._shown = value if usual else key_header(name, value)
            elif kind == _CONNECTION:
                self._told_connection = True
            elif kind == _NOTED:
                self._plain = False
            elif value.lower() == b"100-continue":
                self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Chooses the road."""
        self._in_head = False
        parser = self.parser
        if len(self.headers) > MAX_HEADERS or (
            (self._large_chunk or self._stuck >= 0)
            and len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD
        ):
            self._refuse(_HEAD_TOO_LARGE)
            raise _Stop
        if parser.should_upgrade():
            self._upgrading = True
            return
        endpoint = self.door.table.get(self.url)
        if (
            endpoint is None
            or parser.get_method() != b"POST"
            or self.expect_100_continue
            or (self.cycle is not None and not self.cycle.response_complete)
        ):
            self._take_asgi_road()
            return
        if self._length and int(self._length) > self.door.max_body:
            self._refuse(self.door.too_large())
            raise _Stop
        self._endpoint = endpoint
        self._body = b""
        # HTTP/1.0 keeps a connection only where a header asks for it.
        self._keep = parser.should_keep_alive() and not (self._told_connection and parser.get_http_version() == "1.0")

    def _take_asgi_road(self) -> None:
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        if not self.owed:
            super().on_headers_complete()
            return
        if self._settled is None:
            self._settled = self.loop.create_future()
        app, settled = self.app, self._settled

        async def after_hot_replies(scope: Any, receive: Any, send: Any) -> None:
            await settled
            await app(scope, receive, send)

        self.app = after_hot_replies
        try:
            super().on_headers_complete()
        finally:
            self.app = app

    def on_body(self, body: bytes) -> None:
        """Collects a part of the body."""
        self._stuck = -1
        if self._endpoint is None:
            super().on_body(body)
            return
        if len(self._body) + len(body) > self.door.max_body:
            self._refuse(self.door.too_large())
            raise _Stop
        if not self._body:
            self._body = body
        else:
            if type(self._body) is bytes:
                self._body = bytearray(self._body)
            self._body += body

    def on_message_complete(self) -> None:
        """Hands a complete hot request to the door."""
        self._open = False
        endpoint = self._endpoint
        if endpoint is None:
            if not self._upgrading:
                super().on_message_complete()
            return
        self._endpoint = None
        self.owed += 1
        request = HotRequest(bytes(self._body), self._arrived, self.headers, self._peer, "", self._plain, self._shown)
        self.door.add(Pending(self, endpoint, request, _NONE, self._keep), self.loop)
        if not self._keep:
            self.deaf = True
            raise _Stop
        if self.owed >= MOST_OWED:
            self.flow.pause_reading()

    # Refusing

    def _broken(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if isinstance(cause, _Stop):
            return
        ours = isinstance(error, httptools.HttpParserCallbackError) and not isinstance(
            cause, (UnicodeError, httptools.HttpParserInvalidURLError)
        )
        if ours:
            logger.error("reading a request failed", exc_info=cause)
        self._refuse(FAULT if ours else _MALFORMED)

    def _refuse(self, reply: Reply) -> None:
        # The last word on this connection, after all that is owed before it.
        self.deaf = True
        self._endpoint = None
        if self._asgi_busy() and not self.cycle.more_body:
            self.cycle.keep_alive = False
            return
        if self._asgi_busy() and self.pipeline:
            # It has not begun, so another application takes its place in the queue.
            async def refuse(_scope: Any, _receive: Any, send: Any) -> None:
                await send_reply(reply, send, ((b"connection", b"close"),))

            self.pipeline[0] = (self.cycle, refuse)
            return
        if self._asgi_busy() and self.cycle.response_started:
            self.transport.close()
            return
        self._lingering = True
        self.owed += 1
        if self._asgi_busy() and self.owed == 1:
            # The application may start to answer at any moment, so this cannot wait for the door.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.deliver(self.door.render(reply, keep=False), 1, close=True)
        else:
            self.door.add(Pending(self, None, None, reply, keep=False), self.loop)

    # Writing

    def deliver(self, data: bytes, count: int, *, close: bool) -> None:
        """Writes replies; to a client that has gone nothing is written."""
        self.owed -= count
        self.server_state.total_requests += count
        if not self.transport.is_closing():
            self.transport.write(data)
            if close or (self.finishing and not self.owed and not self._asgi_busy()):
                self._close()
        if not self.owed:
            self._settle()
        if self.flow.read_paused and self.owed < MOST_OWED // 2:
            self.flow.resume_reading()

    def _settle(self) -> None:
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)
        self._settled = None

    def _close(self) -> None:
        if self._lingering and self.transport.can_write_eof():
            # Closing while the client still sends would reset the connection and could take the reply with it.
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()


def bound_to(door: Door) -> type[HotProtocol]:
    """Returns the protocol class of one door, as uvicorn wants it."""
    return type("BoundHotProtocol", (HotProtocol,), {"door": door})
