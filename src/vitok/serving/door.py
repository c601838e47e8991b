"""The hot door: the requests that one turn of the event loop has read are answered as one list.

Nothing waits for company: a request alone is answered alone, and under load the lists grow by themselves.
"""

import collections
import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Protocol

import msgspec

from vitok.errors import InvalidInput, ServiceError
from vitok.serving.messages import Endpoint, HotRequest, Later, Reply
from vitok.serving.problems import FAULT, problem

logger = logging.getLogger("vitok.serving")

MAX_BODY = 65_536
MAX_BATCH = 256
# Replies that come later leave on so many connections a turn, so that whoever has just asked need not wait for all.
RELEASED_AT_ONCE = 16


class Connection(Protocol):
    """Whoever is owed replies: it is told to write some of them."""

    def deliver(self, data: bytes, count: int, *, close: bool) -> None:
        """Writes `count` replies and closes the connection after the last, if so told."""
        ...


class Loop(Protocol):
    """The part of an event loop that the door needs."""

    def call_soon(self, callback: Callable[..., object], *args: Any) -> object:
        """Calls `callback` in the next turn."""
        ...


class Pending(msgspec.Struct, frozen=True, gc=False):
    """A request and where its reply goes; or, without an endpoint, a reply that is already known."""

    connection: Connection
    endpoint: Endpoint | None
    request: HotRequest | None
    reply: Reply
    keep: bool


class Door:
    """Gathers requests for a turn of the event loop, has them answered, and writes the replies in order.

    Args:
        endpoints: What is served here; each path once.
        max_body: Longest body, in bytes; a longer one is refused with 413.
        max_batch: Most requests that an endpoint gets at once; the rest has to wait for the next turn.

    Attributes:
        requests: How many requests were answered by endpoints.
        batches: How many lists they came in.
        faults: How many requests got 500, because their endpoint raised.
        common: Headers that every reply carries.

    Raises:
        InvalidInput: If a path does not start with a slash, has a query or comes twice, or a limit is below 1.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint] = (), *, max_body: int = MAX_BODY, max_batch: int = MAX_BATCH
    ) -> None:
        self.table: dict[bytes, Endpoint] = {}
        for endpoint in endpoints:
            path = endpoint.path
            if not path.startswith("/") or not path.isascii() or any(mark in path for mark in "?#% "):
                raise InvalidInput("path", path, "be an exact ASCII path that starts with a slash")
            if path.encode() in self.table:
                raise InvalidInput("path", path, "belong to one endpoint only")
            self.table[path.encode()] = endpoint
        for name, value in (("max_body", max_body), ("max_batch", max_batch)):
            if value < 1:
                raise InvalidInput(name, value, "be at least 1")
        self.max_body = max_body
        self.max_batch = max_batch
        self.requests = self.batches = self.faults = 0
        self._waiting: list[Pending] = []
        self._scheduled = False
        self._heads: dict[tuple[int, bytes], bytes] = {}
        # What connections are owed behind a reply that is not known yet, and which of them may have been waited for.
        self._owed: dict[Connection, collections.deque[tuple[Reply | Later, bool]]] = {}
        self._due: dict[Connection, None] = {}
        self.common: list[tuple[bytes, bytes]] = []

    def too_large(self) -> Reply:
        """Returns the refusal of a body that is too long."""
        return problem(413, "Content Too Large", f"body: must be at most {self.max_body} bytes long", field="body")

    def add(self, pending: Pending, loop: Loop) -> None:
        """Takes one request; it is answered in the next turn of the loop, with all others of this one."""
        self._waiting.append(pending)
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._flush, loop)

    def answer(self, endpoint: Endpoint, requests: Sequence[HotRequest]) -> list[Reply | Later]:
        """Has an endpoint answer; where it raises or breaks its promise, each of the requests gets 500."""
        self.requests += len(requests)
        self.batches += 1
        try:
            replies = list(endpoint.handle(requests))
            if len(replies) != len(requests):
                raise ServiceError(f"{endpoint.path} gave {len(replies)} replies to {len(requests)} requests")
            for reply in replies:
                if type(reply) is Reply and type(reply.body) is bytes and reply.status in _PHRASES:
                    continue
                if type(reply) is not Later:
                    raise ServiceError(f"{endpoint.path} gave {reply!r}, which is no Reply with a known status")
        except Exception:
            logger.exception("%s failed on %d requests", endpoint.path, len(requests))
            self.faults += len(requests)
            return [FAULT] * len(requests)
        return replies

    def use_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Sets the headers that every reply carries (the server's, such as the date)."""
        if headers is not self.common:
            self.common = headers
            self._heads.clear()

    def render(self, reply: Reply, *, keep: bool) -> bytes:
        """Writes a reply as it goes over the wire; `keep` says whether the connection stays."""
        head = self._heads.get((reply.status, reply.media_type))
        if head is None:
            head = self._heads[reply.status, reply.media_type] = self._head(reply.status, reply.media_type)
        return b"%b%d\r\n%b%b\r\n%b" % (
            head,
            len(reply.body),
            reply.headers,
            b"" if keep else b"connection: close\r\n",
            reply.body,
        )

    def _head(self, status: int, media_type: bytes) -> bytes:
        common = b"".join(b"%b: %b\r\n" % header for header in self.common)
        kind = media_type or (b"application/json" if status < 400 else b"application/problem+json")
        return b"HTTP/1.1 %d %b\r\n%bcontent-type: %b\r\ncontent-length: " % (status, _PHRASES[status], common, kind)

    def _flush(self, loop: Loop) -> None:
        waiting = self._waiting
        if len(waiting) <= self.max_batch:
            batch, self._waiting, self._scheduled = waiting, [], False
        else:
            batch, self._waiting = waiting[: self.max_batch], waiting[self.max_batch :]
            loop.call_soon(self._flush, loop)
        out: dict[Connection, list[bytes]] = {}
        closing = set()
        start, n = 0, len(batch)
        # Runs of one endpoint, not groups: what came first is also done first, whatever its path.
        while start < n:
            endpoint = batch[start].endpoint
            end = start + 1
            while end < n and batch[end].endpoint is endpoint:
                end += 1
            items = batch if end - start == n else batch[start:end]
            start = end
            if endpoint is None:
                replies: list[Reply | Later] = [item.reply for item in items]
            else:
                replies = self.answer(endpoint, [item.request for item in items])  # type: ignore[misc]
            for item, reply in zip(items, replies, strict=True):
                connection = item.connection
                if type(reply) is Later or (self._owed and connection in self._owed):
                    self._wait(item, reply, loop)
                    continue
                data = self.render(reply, keep=item.keep)  # type: ignore[arg-type]
                parts = out.get(connection)
                if parts is None:
                    out[connection] = [data]
                else:
                    parts.append(data)
                if not item.keep:
                    closing.add(connection)
        for connection, parts in out.items():
            if len(parts) == 1:
                connection.deliver(parts[0], 1, close=connection in closing)
            else:
                connection.deliver(b"".join(parts), len(parts), close=connection in closing)

    def _wait(self, item: Pending, reply: Reply | Later, loop: Loop) -> None:
        self._owed.setdefault(item.connection, collections.deque()).append((reply, item.keep))
        if type(reply) is Later:
            reply.then(functools.partial(self._given, item.connection, loop))

    def _given(self, connection: Connection, loop: Loop) -> None:
        # Replies that are given together leave together.
        if not self._due:
            loop.call_soon(self._release, loop)
        self._due[connection] = None

    def _release(self, loop: Loop) -> None:
        due, self._due = self._due, {}
        if len(due) > RELEASED_AT_ONCE:
            rest = iter(due)
            due = dict.fromkeys(itertools.islice(rest, RELEASED_AT_ONCE))
            self._due = dict.fromkeys(rest)
            loop.call_soon(self._release, loop)
        for connection in due:
            waiting = self._owed.get(connection)
            parts, close = [], False
            while waiting:
                reply, keep = waiting[0]
                known = reply.reply if type(reply) is Later else reply
                if known is None:
                    break
                waiting.popleft()
                if not _sound(known):
                    logger.error("%r was given, which is no Reply with a known status", known)
                    self.faults += 1
                    known = FAULT
                parts.append(self.render(known, keep=keep))  # type: ignore[arg-type]
                close = close or not keep
            if not waiting:
                self._owed.pop(connection, None)
            if parts:
                connection.deliver(b"".join(parts), len(parts), close=close)


def _sound(reply: object) -> bool:
    return type(reply) is Reply and type(reply.body) is bytes and reply.status in _PHRASES


_PHRASES = {
    status.value: status.phrase.encode()
    for status in HTTPStatus
    if status.value >= 200 and status.value not in (204, 205, 304)
}
