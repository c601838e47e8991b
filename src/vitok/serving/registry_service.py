"""The registry over HTTP: any number of servers without state of their own, on one database and one bucket.

    serve(registry_application(desk), [PackageEndpoint(desk)], port=8500)

A server keeps nothing that another would miss: whichever a balancer picks sees all that was acknowledged before, and
one that is killed in the middle of a change has made it whole or not at all. A change that carries a key may be sent
again to another.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import msgspec

from vitok import __version__
from vitok.clock import Clock, SystemClock, parse_time
from vitok.errors import GateRefused, InvalidInput, NotFound, StoreError, VitokError
from vitok.guard import KeyRing, Refusal
from vitok.registry import Entry, ModelState, Registry, Stage, Tracker, Verdict, Version
from vitok.serving.messages import HotRequest, Later, Reply, key_header, key_token
from vitok.serving.problems import FAULT, MEDIA_TYPE, UNDECODABLE, from_decode_error, from_error, handlers, problem
from vitok.serving.registry_messages import MSGPACK, ChangeRequest, RegisterRequest

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

READ, WRITE, PROMOTE, APPROVE = "registry:read", "registry:write", "registry:promote", "registry:approve"
_SCOPES: Mapping[str, str] = {
    "gate": WRITE,
    "propose": WRITE,
    "note": WRITE,
    "approve": APPROVE,
    "approvals": PROMOTE,
    "promote": PROMOTE,
    "rollback": PROMOTE,
    "canary": PROMOTE,
    "canary-end": PROMOTE,
    "remove": PROMOTE,
}
GATE_REFUSED = "Gate refused"
_UPLOADS_AT_ONCE = 4
_MOST_ENTRIES = 10_000


class Refused(Exception):  # noqa: N818
    """A request without the key that it needs.

    Args:
        refusal: Why.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class RegistryDesk:
    """What the service does, apart from HTTP.

    Args:
        registry: The registry.
        keys: Who may ask. Whose key it is (its tenant) is the actor of every change, so that nobody approves in
            another's name. None asks for no key, and takes the actor from the request.
        tracker: The runs; None where there are none to show.
        clock: Gives the times of changes.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        keys: KeyRing | None = None,
        tracker: Tracker | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.registry = registry
        self.tracker = tracker
        self._keys = keys
        self._clock = clock or SystemClock()

    def admit(self, token: str | bytes | None, scope: str) -> str | None:
        """Checks a key; returns whose it is, or None where none is asked for.

        Raises:
            Refused: If it does not let in.
        """
        if self._keys is None:
            return None
        found = self._keys.check(token, scope, self._clock.now())
        if isinstance(found, Refusal):
            raise Refused(found)
        return found.tenant

    def state(self, model: str, at: int | None = None) -> ModelState:
        """Returns where a model stands, with all that was acknowledged by whatever server, or stood.

        Raises:
            NotFound: If it has no entry.
        """
        ledger = self.registry.ledger
        ledger.catch_up()
        state = ledger.state(model, at=at)
        if not state.revision and not ledger.state(model).revision:
            raise NotFound("model", model, ledger.models())
        return state

    def register(self, request: RegisterRequest, owner: str | None) -> Version:
        """Registers a package."""
        return self.registry.register(
            request.model,
            request.files,
            now=self._clock.now(),
            actor=_actor(owner, request.actor),
            run_id=request.run_id,
            reason=request.reason,
            key=request.key,
        )

    def change(self, model: str, operation: str, asked: ChangeRequest, owner: str | None) -> Entry:
        """Makes one change and returns its entry.

        Raises:
            NotFound: If there is no such operation, or no such version.
            InvalidInput: If something is missing, or breaks its rule.
            Conflict: If somebody else was faster.
            GateRefused: If a verdict or an approval lacks.
        """
        ledger = self.registry.ledger
        by: dict[str, Any] = {"actor": _actor(owner, asked.actor), "now": self._clock.now(), "key": asked.key}
        why: dict[str, Any] = {**by, "reason": asked.reason}
        match operation:
            case "gate":
                verdict = Verdict.from_dict(_given("verdict", asked.verdict, dict))
                return ledger.record_gate(model, _given("version", asked.version, int), verdict, **by)
            case "propose":
                return ledger.propose(model, _given("version", asked.version, int), **why)
            case "approve":
                return ledger.approve(model, _given("version", asked.version, int), **why)
            case "approvals":
                return ledger.require_approvals(model, _given("needed", asked.needed, int), **why)
            case "promote":
                return ledger.promote(
                    model,
                    _given("version", asked.version, int),
                    cast("Stage", _given("stage", asked.stage, str)),
                    expected=asked.expected,
                    override=asked.override,
                    **why,
                )
            case "rollback":
                return ledger.rollback(model, expected=asked.expected, **why)
            case "canary":
                return ledger.start_canary(
                    model,
                    _given("version", asked.version, int),
                    _given("share", asked.share, float),
                    expected=asked.expected,
                    override=asked.override,
                    **why,
                )
            case "canary-end":
                verdict_of_canary: Any = _given("verdict", asked.verdict, str)
                return ledger.end_canary(model, verdict=verdict_of_canary, version=asked.version, **why)
            case "note":
                return ledger.note(model, asked.reason, version=asked.version, details=asked.details, **by)
            case "remove":
                return ledger.remove(model, _given("version", asked.version, int), **why)
        raise NotFound("operation", operation, _SCOPES)

    def runs(self) -> Tracker:
        """Returns the runs.

        Raises:
            NotFound: If this service has none to show.
        """
        if self.tracker is None:
            raise NotFound("store of runs", "of this service")
        return self.tracker

    def readiness(self) -> dict[str, Any]:
        """Asks the stores; says of each `"ok"` or what is wrong."""
        found = {"ledger": _tried(self.registry.ledger.catch_up)}
        objects = self.registry.objects
        found["packages"] = "ok" if objects is None else _tried(objects.bucket.check)
        return {"ready": all(word == "ok" for word in found.values()), **found}


class PackageEndpoint:
    """`POST /v1/packages`: registers a package, whose bytes need not go through ASGI.

    Args:
        desk: What does it.
    """

    path = "/v1/packages"

    def __init__(self, desk: RegistryDesk) -> None:
        self._desk = desk
        self._pool = ThreadPoolExecutor(_UPLOADS_AT_ONCE, thread_name_prefix="registry-upload")

    def handle(self, requests: Sequence[HotRequest]) -> list[Reply | Later]:
        """Answers uploads, each in a thread of its own."""
        loop = asyncio.get_running_loop()
        return [self._later(request, loop) for request in requests]

    def close(self) -> None:
        """Waits for the uploads that are under way."""
        self._pool.shutdown()

    def _later(self, request: HotRequest, loop: asyncio.AbstractEventLoop) -> Later:
        later = Later()

        def work() -> None:
            # Whatever goes wrong, somebody waits for an answer.
            reply = FAULT
            try:
                reply = self._answer(request)
            finally:
                loop.call_soon_threadsafe(later.give, reply)

        self._pool.submit(work)
        return later

    def _answer(self, request: HotRequest) -> Reply:
        shown = next((found for name, value in request.headers if (found := key_header(name, value))), None)
        try:
            owner = self._desk.admit(key_token(shown), WRITE)
            packed = (request.header(b"content-type") or b"").startswith(MSGPACK.encode())
            decode = msgspec.msgpack.decode if packed else msgspec.json.decode
            version = self._desk.register(decode(request.body, type=RegisterRequest), owner)
        except Refused as error:
            return _refusal(error.refusal)
        except UNDECODABLE as error:
            return from_decode_error(error)
        except VitokError as error:
            return from_error(error)
        return Reply(200, msgspec.json.encode(dataclasses.asdict(version)))


def registry_application(desk: RegistryDesk) -> "Starlette":
    """Makes the ASGI application beside the endpoint for packages: stages, history, files, runs and health.

    Args:
        desk: What answers.
    """
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    ledger = desk.registry.ledger

    def reading(answer: "Callable[[Request], Any]") -> "Callable[[Request], Response]":
        # Not async: Starlette runs it in a thread, since it asks a database.
        def endpoint(request: "Request") -> "Response":
            desk.admit(_token(request), READ)
            found = answer(request)
            return found if isinstance(found, Response) else JSONResponse(found)

        return endpoint

    def models(_: "Request") -> Any:
        return {"models": list(ledger.models())}

    def state(request: "Request") -> Any:
        return _state(desk.state(request.path_params["model"], _time(request, "at")))

    def served(request: "Request") -> Any:
        model, moment = request.path_params["model"], _time(request, "time")
        if moment is None:
            raise InvalidInput("time", None, "be given, in ISO 8601 or microseconds")
        return {"model": model, "time_us": moment, "version": ledger.at(model, moment)}

    def history(request: "Request") -> Any:
        after, version = _number(request, "after") or 0, _number(request, "version")
        entries = ledger.history(request.path_params["model"], version=version, after=after)
        return {
            "entries": [entry.to_dict() for entry in entries[:_MOST_ENTRIES]],
            "more": len(entries) > _MOST_ENTRIES,
        }

    def version(request: "Request") -> Any:
        return dataclasses.asdict(desk.state(request.path_params["model"]).resolve(_which(request)))

    def package(request: "Request") -> Any:
        model = request.path_params["model"]
        number = desk.state(model).resolve(_which(request)).version
        found = desk.registry.load(model, number)
        content = {
            "version": number,
            "created": found.created,
            "kind": found.kind,
            "digest": found.digest,
            "files": {name: found.bytes(name) for name in found.files},
        }
        return Response(msgspec.msgpack.encode(content), media_type=MSGPACK)

    def runs(request: "Request") -> Any:
        given = request.query_params
        found = desk.runs().runs(
            experiment=given.get("experiment"), matching=given.get("matching", ""), most=_number(request, "most") or 100
        )
        return {"runs": [run.to_dict() for run in found]}

    def run(request: "Request") -> Any:
        return desk.runs().recorded(request.path_params["run"]).to_dict()

    def metric(request: "Request") -> Any:
        return desk.runs().history(request.path_params["run"], request.path_params["metric"]).to_dict()

    def verified(_: "Request") -> Any:
        return dataclasses.asdict(ledger.verify())

    async def change(request: "Request") -> "Response":
        from starlette.concurrency import run_in_threadpool

        model, operation = request.path_params["model"], request.path_params["operation"]
        if operation not in _SCOPES:
            raise NotFound("operation", operation, _SCOPES)
        owner = desk.admit(_token(request), _SCOPES[operation])
        asked = msgspec.json.decode(await request.body(), type=ChangeRequest)
        entry = await run_in_threadpool(desk.change, model, operation, asked, owner)
        return JSONResponse(entry.to_dict())

    async def healthy(_: "Request") -> "Response":
        return JSONResponse({"status": "ok", "version": __version__})

    def ready(_: "Request") -> "Response":
        found = desk.readiness()
        return JSONResponse(found, 200 if found["ready"] else 503)

    async def refused(_: "Request", error: Exception) -> "Response":
        reply = _refusal(cast("Refused", error).refusal)
        extra = cast("Refused", error).refusal.headers()
        return Response(reply.body, reply.status, extra, media_type=MEDIA_TYPE)

    async def gated(_: "Request", error: Exception) -> "Response":
        return Response(problem(409, GATE_REFUSED, str(error)).body, 409, media_type=MEDIA_TYPE)

    one = "/v1/models/{model}"
    return Starlette(
        routes=[
            Route("/v1/models", reading(models)),
            Route(one, reading(state)),
            Route(f"{one}/at", reading(served)),
            Route(f"{one}/history", reading(history)),
            Route(f"{one}/versions/{{version}}", reading(version)),
            Route(f"{one}/versions/{{version}}/package", reading(package)),
            Route(f"{one}/{{operation}}", change, methods=["POST"]),
            Route("/v1/runs", reading(runs)),
            Route("/v1/runs/{run}", reading(run)),
            Route("/v1/runs/{run}/metrics/{metric:path}", reading(metric)),
            Route("/v1/verify", reading(verified)),
            Route("/healthz", healthy),
            Route("/readyz", ready),
        ],
        exception_handlers={**handlers(), Refused: refused, GateRefused: gated},
    )


def _state(state: ModelState) -> dict[str, Any]:
    return {**dataclasses.asdict(state), "latest": state.latest, "shown": str(state)}


def _refusal(refusal: Refusal) -> Reply:
    headers = "".join(f"{name}: {value}\r\n" for name, value in refusal.headers().items())
    return problem(refusal.status, "Not allowed", refusal.message, headers=headers.encode())


def _tried(ask: Callable[[], object]) -> str:
    try:
        ask()
    except (StoreError, NotFound) as error:
        return str(error)
    return "ok"


def _actor(owner: str | None, named: str | None) -> str:
    if owner is None:
        return _given("actor", named, str)
    if named not in (None, owner):
        raise InvalidInput("actor", named, f"be left out: whose key it is counts, {owner!r}")
    return owner


def _given(field: str, value: Any, kind: type) -> Any:
    if value is None or not isinstance(value, kind):
        raise InvalidInput(field, value, f"be given, as {kind.__name__}")
    return value


def _token(request: "Request") -> bytes | None:
    shown = next((found for name, value in request.headers.raw if (found := key_header(name, value))), None)
    return key_token(shown)


def _which(request: "Request") -> int | str:
    text = str(request.path_params["version"])
    return int(text) if text.isdecimal() else text


def _number(request: "Request", name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise InvalidInput(name, text, "be a whole number of at least 0")
    return int(text)


def _time(request: "Request", name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    return parse_time(text)
