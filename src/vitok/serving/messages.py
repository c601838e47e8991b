"""What passes through the hot door: a request, a reply, and the endpoint that turns a list of one into the other."""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

NOTED = frozenset((b"traceparent", b"inference-header-content-length"))
"""Headers that the inference protocol looks for in every request."""

UNREAD = b""
"""What `HotRequest.shown` is where nobody has looked for a key yet."""
_BEARER = b"bearer "


def key_header(name: bytes, value: bytes) -> bytes | None:
    """Returns what a header shows of a key, with a mark of its kind in front; None where it has no key.

    Args:
        name: Name of the header, in lower case.
        value: Its value.

    Example:
        >>> key_header(b"x-api-key", b"vitok_1"), key_header(b"authorization", b"Bearer vitok_1")
        (b' vitok_1', b'Bearer vitok_1')
    """
    if name == b"x-api-key":
        return b" " + value
    return value if name == b"authorization" and value[:7].lower() == _BEARER else None


def key_token(shown: bytes | None) -> bytes | None:
    """Returns the token of what a header has shown.

    Example:
        >>> key_token(b"Bearer vitok_1"), key_token(b" vitok_1")
        (b'vitok_1', b'vitok_1')
    """
    if shown is None:
        return None
    return shown.strip() if shown[:1] == b" " else shown[7:].strip()


class HotRequest(msgspec.Struct, gc=False):
    """One complete request as an endpoint gets it. A guard before the endpoint says whose it is; nothing else changes.

    Attributes:
        body: The whole body, unread.
        arrived: When its last byte was read, in nanoseconds of `time.perf_counter_ns`.
        headers: Names in lower case with their values, in the order of arrival; trailers are left out.
        peer: Address of whoever opened the connection; empty for a Unix socket.
        tenant: Whose request it is, where a guard has found that out.
        plain: Whether it is known that none of `NOTED` is among the headers, so that nobody has to look.
        shown: The first header with a key, as `key_header` has it, or None where there is none; `UNREAD` where nobody
            has looked.

    Example:
        >>> HotRequest(b"{}", 0, [(b"content-type", b"application/json")]).header(b"content-type")
        b'application/json'
    """

    body: bytes
    arrived: int
    headers: list[tuple[bytes, bytes]]
    peer: str = ""
    tenant: str = ""
    plain: bool = False
    shown: bytes | None = UNREAD

    def header(self, name: bytes) -> bytes | None:
        """Returns the first value of a header, or None; `name` is in lower case."""
        for known, value in self.headers:
            if known == name:
                return value
        return None


class Reply(msgspec.Struct, frozen=True, gc=False):
    r"""The answer to one request.

    Attributes:
        status: Status code of HTTP, from 200 to 599, of a kind that has a body.
        body: The body; may be empty.
        headers: Further header lines, each ended by CR LF, such as `b"retry-after: 1\r\n"`.
        media_type: What the body is; where empty, `application/json` below status 400 and `application/problem+json`
            from there on.
    """

    status: int
    body: bytes
    headers: bytes = b""
    media_type: bytes = b""


class Later:
    """A reply that an endpoint owes: it is given once it is known, and meanwhile the event loop goes on.

    Not made for several threads: a worker hands its replies to the loop (`call_soon_threadsafe`), which gives them.

    Attributes:
        reply: The reply; None until it is given.
        headers: Header lines that it gets besides its own, as in `Reply`.

    Example:
        >>> later = Later()
        >>> later.then(lambda: print("given"))
        >>> later.give(Reply(200, b"{}"))
        given
    """

    __slots__ = ("_then", "headers", "reply")

    def __init__(self) -> None:
        self.reply: Reply | None = None
        self.headers = b""
        self._then: Callable[[], object] | None = None

    def give(self, reply: Reply) -> None:
        """Gives the reply; a second one does not count."""
        if self.reply is None:
            if self.headers:
                reply = Reply(reply.status, reply.body, reply.headers + self.headers, reply.media_type)
            self.reply = reply
            if self._then is not None:
                self._then()

    def then(self, callback: Callable[[], object]) -> None:
        """Has `callback` called when the reply is given, or at once if it is; the last callback set counts."""
        self._then = callback
        if self.reply is not None:
            callback()


class Endpoint(Protocol):
    """Answers all requests that one turn of the event loop has read for one path.

    Attributes:
        path: Exact path, such as `"/v1/systems/fraud/decide"`.
    """

    path: str

    def handle(self, requests: Sequence[HotRequest]) -> Sequence[Reply | Later]:
        """Answers requests in the order of their arrival, one reply each, without waiting for anything slow.

        It runs on the event loop: while it works nothing else is read. What takes long is a `Later`; the replies of a
        connection leave in the order of its requests all the same. A bad request is a reply with a 4xx status; an
        exception is a fault of the endpoint and gives 500 to all of `requests`.
        """
        ...
