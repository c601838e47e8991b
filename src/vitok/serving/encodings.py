"""Compressed bodies (RFC 9110, section 8.4): requests are inflated up to a bound, long replies compressed where asked.

A request that begins as JSON does is taken for what it is at a glance, so that none of this is on the fast path.
"""

import zlib
from collections.abc import Sequence

from vitok.errors import InvalidInput
from vitok.serving.inference_messages import error_reply
from vitok.serving.messages import Endpoint, HotRequest, Later, Reply
from vitok.serving.problems import problem

Replies = Sequence[Reply | Later]

LEAST_COMPRESSED = 1400
"""Replies shorter than this leave as they are: they fit into one packet."""

_JSON = b"{"
_LEVEL = 1  # twice as fast as level 6, and numbers become hardly longer
_WINDOWS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}


class TooLong(InvalidInput):
    """A body that becomes longer than it may."""


def inflated(body: bytes, coding: bytes, *, most: int) -> bytes:
    """Returns a body as it was before it was compressed.

    Args:
        body: What came.
        coding: `b"gzip"` or `b"deflate"`; a deflate body may lack its zlib header, as those of some clients do.
        most: Most bytes that it may become; no more are ever made.

    Raises:
        TooLong: If it becomes longer.
        InvalidInput: If it is damaged, cut off or followed by something else.

    Example:
        >>> inflated(zlib.compress(b"{}"), b"deflate", most=10)
        b'{}'
    """
    try:
        return _inflated(body, _WINDOWS[coding], most)
    except zlib.error as error:
        if coding == b"deflate":
            try:
                return _inflated(body, -15, most)
            except zlib.error:
                pass
        raise InvalidInput("body", f"{len(body)} bytes", f"be compressed by {coding.decode()}: {error}") from None


def _inflated(body: bytes, window: int, most: int) -> bytes:
    reader = zlib.decompressobj(window)
    found = reader.decompress(body, most + 1)
    if len(found) > most:
        raise TooLong("body", f"more than {most} bytes", f"be at most {most} bytes long once it is inflated")
    if not reader.eof or reader.unused_data:
        raise zlib.error("it is cut off" if not reader.eof else "something follows it")
    return found


def accepted(header: bytes) -> bytes | None:
    """Returns the coding that a reply may have by an `Accept-Encoding`, or None.

    Example:
        >>> accepted(b"br, gzip;q=0.5, deflate"), accepted(b"gzip;q=0, identity"), accepted(b"*")
        (b'deflate', None, b'gzip')
    """
    best: tuple[float, bytes | None] = (0.0, None)
    for item in header.lower().split(b","):
        coding, _, parameter = item.partition(b";")
        coding = b"gzip" if coding.strip() == b"*" else coding.strip()
        if coding not in (b"gzip", b"deflate"):
            continue
        name, _, value = parameter.partition(b"=")
        try:
            weight = float(value) if name.strip() == b"q" else 1.0
        except ValueError:
            weight = 0.0
        if weight > best[0]:
            best = (weight, coding)
    return best[1]


def compressed(reply: Reply, coding: bytes) -> Reply:
    """Returns a reply with its body compressed."""
    writer = zlib.compressobj(_LEVEL, wbits=_WINDOWS[coding])
    body = writer.compress(reply.body) + writer.flush()
    headers = b"%bcontent-encoding: %b\r\nvary: accept-encoding\r\n" % (reply.headers, coding)
    return Reply(reply.status, body, headers, reply.media_type)


class Encoded:
    """Reads compressed requests before an endpoint, and compresses its long replies for those who ask for that.

    Args:
        endpoint: What answers.
        max_body: Most bytes that a request may become; a longer one is refused with 413.

    Example:
        >>> class Echo:
        ...     path = "/echo"
        ...
        ...     def handle(self, requests):
        ...         return [Reply(200, request.body) for request in requests]
        >>> zipped = HotRequest(zlib.compress(b'{"a": 1}'), 0, [(b"content-encoding", b"deflate")])
        >>> [reply.body for reply in Encoded(Echo(), max_body=100).handle([zipped, HotRequest(b"{}", 0, [])])]
        [b'{"a": 1}', b'{}']
    """

    def __init__(self, endpoint: Endpoint, *, max_body: int) -> None:
        self.path = endpoint.path
        self.endpoint = endpoint
        self.max_body = max_body

    def handle(self, requests: Sequence[HotRequest]) -> Replies:
        """Answers requests in the order of their arrival."""
        if requests and type(requests[0]) is not HotRequest:
            return self.endpoint.handle(requests)  # of a door that compresses by itself
        odd = [place for place, request in enumerate(requests) if request.body[:1] != _JSON]
        replies = self._mixed(requests, odd) if odd else self.endpoint.handle(requests)
        for reply in replies:
            if type(reply) is Later or len(reply.body) > LEAST_COMPRESSED:  # type: ignore[union-attr]
                return [self._written(request, reply) for request, reply in zip(requests, replies, strict=True)]
        return replies

    def _mixed(self, requests: Sequence[HotRequest], odd: Sequence[int]) -> Replies:
        read: list[HotRequest | Reply] = list(requests)
        for place in odd:
            read[place] = self._read(requests[place])
        passed = [item for item in read if isinstance(item, HotRequest)]
        answers = iter(self.endpoint.handle(passed) if passed else ())
        return [item if isinstance(item, Reply) else next(answers) for item in read]

    def _read(self, request: HotRequest) -> HotRequest | Reply:
        coding = request.header(b"content-encoding")
        if coding is None or coding.strip().lower() in (b"", b"identity"):
            return request
        coding = coding.strip().lower()
        if coding not in _WINDOWS:
            detail = f"content-encoding: got {coding.decode('latin-1')!r}, must be gzip or deflate"
            told = b"accept-encoding: gzip, deflate\r\n"
            return error_reply(problem(415, "Unsupported Media Type", detail, field="content-encoding", headers=told))
        try:
            body = inflated(request.body, coding, most=self.max_body)
        except TooLong as error:
            return error_reply(problem(413, "Content Too Large", str(error), field="body"))
        except InvalidInput as error:
            return error_reply(problem(400, "Not what its headers say", str(error), field="body"))
        headers = [item for item in request.headers if item[0] not in (b"content-encoding", b"content-length")]
        return HotRequest(body, request.arrived, headers, request.peer, request.tenant, request.plain, request.shown)

    @staticmethod
    def _written(request: HotRequest, reply: Reply | Later) -> Reply | Later:
        if isinstance(reply, Reply) and len(reply.body) <= LEAST_COMPRESSED:
            return reply
        wish = request.header(b"accept-encoding")
        coding = None if wish is None else accepted(wish)
        if coding is None:
            return reply
        if isinstance(reply, Reply):
            return compressed(reply, coding)
        owed = Later()

        def give() -> None:
            assert reply.reply is not None  # noqa: S101
            known = reply.reply
            owed.give(compressed(known, coding) if len(known.body) > LEAST_COMPRESSED else known)

        reply.then(give)
        return owed
