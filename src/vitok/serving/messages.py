"""What passes through the hot door: a request, a reply, and the endpoint that turns a list of one into the other."""

from collections.abc import Sequence
from typing import Protocol

import msgspec


class HotRequest(msgspec.Struct, frozen=True, gc=False):
    """One complete request as an endpoint gets it.

    Attributes:
        body: The whole body, unread.
        arrived: When its last byte was read, in nanoseconds of `time.perf_counter_ns`.
        headers: Names in lower case with their values, in the order of arrival; trailers are left out.

    Example:
        >>> HotRequest(b"{}", 0, [(b"content-type", b"application/json")]).header(b"content-type")
        b'application/json'
    """

    body: bytes
    arrived: int
    headers: list[tuple[bytes, bytes]]

    def header(self, name: bytes) -> bytes | None:
        """Returns the first value of a header, or None; `name` is in lower case."""
        for known, value in self.headers:
            if known == name:
                return value
        return None


class Reply(msgspec.Struct, frozen=True, gc=False):
    r"""The answer to one request.

    A body is announced as `application/json` below status 400 and as `application/problem+json` from there on.

    Attributes:
        status: Status code of HTTP, from 200 to 599, of a kind that has a body.
        body: The body; may be empty.
        headers: Further header lines, each ended by CR LF, such as `b"retry-after: 1\r\n"`.
    """

    status: int
    body: bytes
    headers: bytes = b""


class Endpoint(Protocol):
    """Answers all requests that one turn of the event loop has read for one path.

    Attributes:
        path: Exact path, such as `"/v1/systems/fraud/decide"`.
    """

    path: str

    def handle(self, requests: Sequence[HotRequest]) -> Sequence[Reply]:
        """Answers requests in the order of their arrival, one reply each, without waiting for anything slow.

        It runs on the event loop: while it works nothing else is read. A bad request is a reply with a 4xx status; an
        exception is a fault of the endpoint and gives 500 to all of `requests`.
        """
        ...
