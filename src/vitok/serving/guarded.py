"""The guard before a hot endpoint: address, key, rate and size of each request, before anything of it is read."""

import time
from collections.abc import Sequence
from typing import Protocol

from vitok.clock import Clock, SystemClock
from vitok.errors import InvalidInput
from vitok.guard import AddressList, Allowance, KeyRing, Limiter, Refusal, SharedLimiter
from vitok.serving.messages import Endpoint, HotRequest, Later, Reply
from vitok.serving.problems import problem

_BEARER = b"bearer "


class Rated(Protocol):
    """Counts requests by caller, as `vitok.guard.Limiter` does."""

    def check(self, caller: str, now: int, n: int = 1) -> Allowance:
        """Takes a token, or says how long to wait."""
        ...


class Guarded:
    """An endpoint behind a guard. What is not given is not looked at and costs nothing.

    A request passes, in this order, the list of addresses, the key, the key's rate, and the rate of the user that
    the caller names; then it is handed on, marked with the key's tenant. Every answer tells the rate that is left.

    Args:
        endpoint: What is guarded.
        scope: What a key has to allow, such as `"infer:fraud"`.
        keys: The keys, or None for no keys.
        key_limit: Requests by key (by address where there are no keys); in this process, or shared through Redis.
        user_limit: Requests by the user that `user_header` names; a request that names none is not counted.
        user_header: Name of that header, in lower case.
        addresses: Who may ask at all, and which proxies are believed.
        max_body: Longest body in bytes; None for the door's own bound.
        clock: Tells when keys expire.

    Attributes:
        refused: How many requests were refused, by reason.

    Raises:
        InvalidInput: If nothing is to be guarded.

    Example:
        >>> from vitok.guard import Limit
        >>> class Echo:
        ...     path = "/echo"
        ...
        ...     def handle(self, requests):
        ...         return [Reply(200, request.body) for request in requests]
        >>> guarded = Guarded(Echo(), scope="echo", key_limit=Limiter(Limit(1, "1h")))
        >>> [reply.status for reply in guarded.handle([HotRequest(b"{}", 0, [], "10.0.0.1")] * 2)]
        [200, 429]
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        scope: str,
        keys: KeyRing | None = None,
        key_limit: Limiter | SharedLimiter | None = None,
        user_limit: Limiter | SharedLimiter | None = None,
        user_header: str = "x-user-id",
        addresses: AddressList | None = None,
        max_body: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        if keys is None and key_limit is None and user_limit is None and addresses is None and max_body is None:
            raise InvalidInput("guard", "nothing", "check something", "Give keys, a limit, addresses or max_body")
        self.path = endpoint.path
        self.endpoint = endpoint
        self.scope = scope
        self.keys = keys
        self.key_limit = key_limit
        self.user_limit = user_limit
        self.addresses = addresses
        self.max_body = max_body
        self.refused: dict[str, int] = {}
        self._user_header = user_header.lower().encode()
        self._clock = clock or SystemClock()

    def handle(self, requests: Sequence[HotRequest]) -> Sequence[Reply | Later]:
        """Hands on what may pass, and refuses the rest."""
        out: list[Reply | Later | None] = [None] * len(requests)
        passed: list[HotRequest] = []
        places: list[int] = []
        told: list[bytes] = []
        now_us, now_ns = self._clock.now(), time.monotonic_ns()
        for place, request in enumerate(requests):
            found = self._admit(request, now_us, now_ns)
            if isinstance(found, Reply):
                out[place] = found
                continue
            tenant, headers = found
            passed.append(
                HotRequest(request.body, request.arrived, request.headers, request.peer, tenant) if tenant else request
            )
            places.append(place)
            told.append(headers)
        if passed:
            for place, headers, reply in zip(places, told, self.endpoint.handle(passed), strict=True):
                out[place] = _with(reply, headers) if headers else reply
        return out  # type: ignore[return-value]

    def _admit(self, request: HotRequest, now_us: int, now_ns: int) -> Reply | tuple[str, bytes]:
        # The refusal, or the tenant and what the answer tells of the rate.
        if self.max_body is not None and len(request.body) > self.max_body:
            detail = f"body: must be at most {self.max_body} bytes long"
            return self._refuse("size", problem(413, "Content Too Large", detail, field="body"))
        if self.addresses is not None:
            forwarded = request.header(b"x-forwarded-for")
            verdict = self.addresses.check(request.peer, "" if forwarded is None else forwarded.decode("latin-1"))
            if not verdict.admitted:
                return self._refuse("address", problem(403, "Forbidden", str(verdict)))
        caller, tenant, headers = request.peer, "", b""
        if self.keys is not None:
            key = self.keys.check(_token(request), self.scope, now_us)
            if isinstance(key, Refusal):
                lines = b"".join(b"%b: %b\r\n" % (k.encode(), v.encode()) for k, v in key.headers().items())
                title = "Forbidden" if key.status == 403 else "Unauthorized"
                if key.status not in (401, 403):
                    title = "Service Unavailable"
                return self._refuse(key.reason, problem(key.status, title, key.message, headers=lines))
            caller, tenant = key.key_id, key.tenant
        if self.key_limit is not None:
            allowance = self.key_limit.check(caller, now_ns)
            headers = _lines(allowance)
            if not allowance.admitted:
                return self._refuse("rate", _too_many(allowance, headers))
        if self.user_limit is not None and (user := request.header(self._user_header)) is not None:
            allowance = self.user_limit.check(f"{caller} {user.decode('latin-1')}", now_ns)
            if not allowance.admitted:
                return self._refuse("user rate", _too_many(allowance, _lines(allowance)))
        return tenant, headers

    def _refuse(self, reason: str, reply: Reply) -> Reply:
        self.refused[reason] = self.refused.get(reason, 0) + 1
        return reply


def _token(request: HotRequest) -> bytes | None:
    for name, value in request.headers:
        if name == b"authorization" and value[:7].lower() == _BEARER:
            return value[7:].strip()
        if name == b"x-api-key":
            return value.strip()
    return None


def _lines(allowance: Allowance) -> bytes:
    return b"".join(b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in allowance.headers().items())


def _too_many(allowance: Allowance, headers: bytes) -> Reply:
    return problem(429, "Too Many Requests", str(allowance), headers=headers)


def _with(reply: Reply | Later, headers: bytes) -> Reply | Later:
    if type(reply) is Later:
        reply.headers = headers
        return reply
    assert isinstance(reply, Reply)  # noqa: S101
    return Reply(reply.status, reply.body, reply.headers + headers, reply.media_type)
