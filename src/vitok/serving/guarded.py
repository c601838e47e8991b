"""The guard before an endpoint: address, key, rate and size of each request, before anything of it is read."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from vitok.clock import Clock, SystemClock
from vitok.errors import InvalidInput
from vitok.guard import AddressList, Allowance, KeyRing, Limit, Limiter, Refusal, SharedLimiter
from vitok.serving.inference_messages import error_reply
from vitok.serving.messages import UNREAD, Endpoint, HotRequest, Later, Reply, key_header, key_token
from vitok.serving.opening import changed
from vitok.serving.problems import problem


class Rated(Protocol):
    """Counts requests by caller, as `vitok.guard.Limiter` does."""

    def check(self, caller: str, now: int, n: int = 1) -> Allowance:
        """Takes a token, or says how long to wait."""
        ...


class Guarded:
    """An endpoint behind a guard. What is not given is not looked at and costs nothing.

    A request passes, in this order, the list of addresses, the key, the key's rate, and the rate of the user that
    the caller names; then it is handed on, marked with the key's tenant. Every answer tells the rate that is left
    after all requests of its turn.

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
        self._limit: Limit | None = None
        self._policy = b""

    def handle(self, requests: Sequence[HotRequest]) -> Sequence[Reply | Later]:
        """Hands on what may pass, and refuses the rest."""
        now_us, now_ns = self._clock.now(), time.monotonic_ns()
        out: list[Reply | Later | None] = [None] * len(requests)
        passed: Sequence[HotRequest] = requests
        places: Sequence[int] = range(len(requests))
        callers = self._known(requests, now_us)
        if callers is None:
            passed, places, callers = self._let_in(requests, now_us, out)
        told: Sequence[bytes] = ()
        if self.key_limit is not None and passed:
            told = self._rated(self.key_limit, callers, places, out, now_ns)
        if self.user_limit is not None and passed:
            self._by_user(passed, callers, places, out, now_ns)
        if out.count(None) < len(passed):
            kept = [at for at, place in enumerate(places) if out[place] is None]
            passed, places = [passed[at] for at in kept], [places[at] for at in kept]
            told = [told[at] for at in kept] if told else ()
        if not passed:
            return out  # type: ignore[return-value]
        replies = self.endpoint.handle(passed)
        if told:
            replies = [_with(reply, headers) for headers, reply in zip(told, replies, strict=True)]
        if len(passed) == len(requests):
            return replies
        for place, reply in zip(places, replies, strict=True):
            out[place] = reply
        return out  # type: ignore[return-value]

    def _known(self, requests: Sequence[HotRequest], now_us: int) -> list[str] | None:
        # Who asks, where all may pass as far as that can be seen at once; else None, and each is looked at.
        if self.max_body is not None or self.addresses is not None:
            return None
        if self.keys is None:
            return [request.peer for request in requests]
        good = self.keys.good(self.scope, now_us)
        if not good or not requests or type(requests[0]) is not HotRequest:
            return None
        keys = [good.get(request.shown) for request in requests]  # type: ignore[arg-type]
        if not all(keys):
            return None
        callers = []
        for request, key in zip(requests, keys, strict=True):
            assert key is not None  # noqa: S101
            callers.append(key.key_id)
            if key.tenant:
                request.tenant = key.tenant
        return callers

    def _let_in(
        self, requests: Sequence[HotRequest], now_us: int, out: list[Reply | Later | None]
    ) -> tuple[list[HotRequest], list[int], list[str]]:
        # Who may pass by size, address and key, their places, and who asks; the rest is refused in `out`.
        passed: list[HotRequest] = []
        places: list[int] = []
        callers: list[str] = []
        keys, look = self.keys, self.max_body is not None or self.addresses is not None
        # A key that was just checked for another request of this turn is among them as well.
        good = keys.good(self.scope, now_us) if keys is not None else None
        if good is None:
            good = {}
        for place, request in enumerate(requests):
            caller = request.peer
            if look:
                caller, refusal = self._outside(request)
                if refusal is not None:
                    out[place] = refusal
                    continue
            if keys is not None:
                shown = _shown(request)
                key = good.get(shown)  # type: ignore[arg-type]
                if key is None:
                    found = keys.check(key_token(shown), self.scope, now_us, shown=shown)
                    if isinstance(found, Refusal):
                        out[place] = self._unknown(found)
                        continue
                    key = found
                caller = key.key_id
                if key.tenant:
                    request = _marked(request, key.tenant)
            passed.append(request)
            places.append(place)
            callers.append(caller)
        return passed, places, callers

    def _outside(self, request: HotRequest) -> tuple[str, Reply | None]:
        # What can be said before it is known whose request it is; and where it comes from.
        if self.max_body is not None and _size(request) > self.max_body:
            detail = f"body: must be at most {self.max_body} bytes long"
            return request.peer, self._refuse("size", problem(413, "Content Too Large", detail, field="body"))
        if self.addresses is None:
            return request.peer, None
        # A proxy may append a line of its own instead of adding to the caller's: all lines are one list.
        forwarded = b",".join(value for name, value in request.headers if name == b"x-forwarded-for")
        verdict = self.addresses.check(request.peer, forwarded.decode("latin-1"))
        if not verdict.admitted:
            return request.peer, self._refuse("address", problem(403, "Forbidden", str(verdict)))
        return verdict.address, None

    def _unknown(self, refusal: Refusal) -> Reply:
        lines = b"".join(b"%b: %b\r\n" % (k.encode(), v.encode()) for k, v in refusal.headers().items())
        title = "Forbidden" if refusal.status == 403 else "Unauthorized"
        if refusal.status not in (401, 403):
            title = "Service Unavailable"
        return self._refuse(refusal.reason, problem(refusal.status, title, refusal.message, headers=lines))

    def _rated(
        self,
        limit: Limiter | SharedLimiter,
        callers: Sequence[str],
        places: Sequence[int],
        out: list[Reply | Later | None],
        now_ns: int,
    ) -> list[bytes]:
        # Takes the tokens of all requests of a caller at once; whoever has not that many is asked for one by one.
        counts = dict.fromkeys(callers, 1)
        if len(counts) < len(callers):
            counts = Counter(callers)
        left: dict[str, bytes] = {}
        if isinstance(limit, Limiter):
            rest = self._rest(limit.limit)
            for who, (remaining, reset) in limit.take(counts, now_ns).items():
                left[who] = b"%b%d;t=%d\r\n" % (rest, remaining, -(-reset // 1_000_000_000))
        else:
            # One round trip for the turn.
            together = limit.check_many(list(counts), now_ns, costs=list(counts.values()))
            for caller, said in zip(counts, together, strict=True):
                if said.admitted:
                    seconds = -(-said.reset // 1_000_000_000)
                    left[caller] = b"%b%d;t=%d\r\n" % (self._rest(said.limit), said.remaining, seconds)
        if len(left) == len(counts):
            return [left[caller] for caller in callers]
        short = [caller for caller in callers if caller not in left]
        each = iter(_one_by_one(limit, short, now_ns))
        told = []
        for caller, place in zip(callers, places, strict=True):
            headers = left.get(caller)
            if headers is None:
                allowance = next(each)
                headers = _lines(allowance)
                if not allowance.admitted:
                    out[place] = self._refuse("rate", _too_many(allowance, headers))
            told.append(headers)
        return told

    def _by_user(
        self,
        requests: Sequence[HotRequest],
        callers: Sequence[str],
        places: Sequence[int],
        out: list[Reply | Later | None],
        now_ns: int,
    ) -> None:
        assert self.user_limit is not None  # noqa: S101
        asked: list[int] = []
        users: list[str] = []
        for request, caller, place in zip(requests, callers, places, strict=True):
            user = request.header(self._user_header) if out[place] is None else None
            if user is not None:
                asked.append(place)
                users.append(f"{caller} {user.decode('latin-1')}")
        for place, allowance in zip(asked, _one_by_one(self.user_limit, users, now_ns), strict=True):
            if not allowance.admitted:
                out[place] = self._refuse("user rate", _too_many(allowance, _lines(allowance)))

    def _rest(self, limit: Limit) -> bytes:
        # What `Allowance.headers` says the same of every request that may pass, up to the numbers.
        if limit is not self._limit:
            self._limit = limit
            name = limit.name.encode()
            self._policy = b'ratelimit-policy: %b\r\nratelimit: "%b";r=' % (limit.policy().encode(), name)
        return self._policy

    def _refuse(self, reason: str, reply: Reply) -> Reply:
        self.refused[reason] = self.refused.get(reason, 0) + 1
        # Clients of the inference protocol look for the reason in `error`.
        return error_reply(reply)


class Guard:
    """What stands before every model of a host, and before what else can be asked of it: `Guarded`, made as needed.

    All that it makes share the limits: a key has its rate once, however many models it asks.

    Args:
        keys: As for `Guarded`; as all of these.
        key_limit: Requests by key, or by address where there are no keys.
        user_limit: Requests by the user that `user_header` names.
        user_header: Name of that header.
        addresses: Who may ask at all.
        max_body: Longest body in bytes.
        clock: Tells when keys expire.

    Attributes:
        keys: The keys, or None.
        refused: How many requests were refused, by reason.

    Raises:
        InvalidInput: If nothing is to be guarded.

    Example:
        >>> from vitok.guard import Limit
        >>> guard = Guard(key_limit=Limiter(Limit(1, "1h")))
        >>> request = HotRequest(b"{}", 0, [], "10.0.0.1")
        >>> guard.refusal(request, "infer:fraud") is None, guard.refusal(request, "infer:spam").status
        (True, 429)
    """

    def __init__(
        self,
        *,
        keys: KeyRing | None = None,
        key_limit: Limiter | SharedLimiter | None = None,
        user_limit: Limiter | SharedLimiter | None = None,
        user_header: str = "x-user-id",
        addresses: AddressList | None = None,
        max_body: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.keys = keys
        self.refused: dict[str, int] = {}
        self._options: dict[str, Any] = {
            "keys": keys,
            "key_limit": key_limit,
            "user_limit": user_limit,
            "user_header": user_header,
            "addresses": addresses,
            "max_body": max_body,
            "clock": clock,
        }
        self.before(_Open(), "")

    def before(self, endpoint: Endpoint, scope: str) -> Guarded:
        """Returns an endpoint with the guard before it.

        Args:
            endpoint: What is guarded.
            scope: What a key has to allow, such as `"infer:fraud"`.
        """
        made = Guarded(endpoint, scope=scope, **self._options)
        made.refused = self.refused
        return made

    def refusal(self, request: HotRequest, scope: str) -> Reply | None:
        """Returns why a request may not pass, or None; it counts against the limits like any other."""
        reply = self.before(_Open(), scope).handle([request])[0]
        return reply if isinstance(reply, Reply) and reply.status >= 400 else None


class Outer(Protocol):
    """Puts something before an endpoint, as `Guard` does; it may have another one as its `guard`."""

    def before(self, endpoint: Endpoint, scope: str) -> Endpoint:
        """Returns the endpoint with it before."""
        ...


def guard_in(outer: Outer | None) -> Guard | None:
    """Returns the guard among what stands before endpoints, or None."""
    while outer is not None and not isinstance(outer, Guard):
        outer = getattr(outer, "guard", None)
    return outer


class _Open:
    path = ""

    def handle(self, requests: Sequence[HotRequest]) -> Sequence[Reply | Later]:
        return [_LET_IN] * len(requests)


_LET_IN = Reply(200, b"")


def _one_by_one(limit: Limiter | SharedLimiter, callers: Sequence[str], now_ns: int) -> list[Allowance]:
    if isinstance(limit, Limiter):
        return [limit.check(caller, now_ns) for caller in callers]
    return limit.check_many(callers, now_ns) if callers else []


def _marked(request: HotRequest, tenant: str) -> HotRequest:
    if type(request) is HotRequest:
        request.tenant = tenant
        return request
    return changed(request, tenant=tenant)


def _size(request: Any) -> int:
    size: int = len(request.body) if type(request) is HotRequest else request.size
    return size


def _shown(request: HotRequest) -> bytes | None:
    # Requests of other doors have been looked at by nobody.
    if type(request) is HotRequest and request.shown != UNREAD:
        return request.shown
    for name, value in request.headers:
        found = key_header(name, value)
        if found is not None:
            return found
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
