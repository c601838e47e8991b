"""`vitok serve-models`: models of a folder or a registry over the Open Inference Protocol, HTTP and gRPC."""

import asyncio
import contextlib
import functools
import ipaddress
import json as codec
import os
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vitok.clock import duration
from vitok.console.exits import plain_errors
from vitok.console.model_costing import Costing
from vitok.console.model_dressing import Dressing, OutputPlan
from vitok.console.model_guarding import GuardPlan, flags
from vitok.console.model_routing import routed_host
from vitok.console.option_names import options_named
from vitok.console.registry_options import REGISTRY_OPTIONS, PackagesAt, RegistryAt, is_database, only_with_a_database
from vitok.console.trace_options import check_tracing, tracing_to
from vitok.errors import InvalidInput, ServiceError, VitokError
from vitok.registry import Registry, attach
from vitok.serving import Metrics, Running, serve
from vitok.serving.hosted import Hosted
from vitok.serving.hosting import Catalogue, FolderCatalogue, ModelHost, RegistryCatalogue
from vitok.serving.inference_http import inference_application, refresh
from vitok.serving.response_cache import ResponseCache
from vitok.serving.routed import RoutedHost
from vitok.serving.server import Tls
from vitok.serving.shared_metrics import SharedMetrics
from vitok.serving.tracing import Tracing
from vitok.serving.workers import Workers, until_orphaned
from vitok.stats import LatencyHistogram

_FOLLOW_EVERY_S = 0.05
_REGISTRY = "the registry"  # no name of a model has a space
_STAGES = ("Production", "Staging", "canary", "latest")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

Way = Literal["hot", "asgi"]
Queueing = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """What is served, and how: the options of the command.

    Attributes:
        models: Folder of `<name>/<version>/`; or
        home: folder of vitok with a registry, whose version in `stage` answers; or
        registry: the registry that the home goes by, or by itself: another home, or `postgresql://...`.
        packages: Where packages lie if the registry is a database.
        stage: Stage in the registry.
        pinned: Models that are loaded at once and stay.
        host: Address to listen on.
        port: Port of HTTP.
        grpc_port: Port of gRPC; None for none.
        log: Folder of the decision logs, one a model; None for none.
        contract: File of rules for the rows; None for none.
        max_bytes: Most bytes that loaded models take.
        max_body: Longest body in bytes.
        deadline: Seconds within which an answer is of use.
        way: `"hot"`, or `"asgi"` for all through ASGI.
        workers: How many processes.
        worker: Which of them this one is; None for the only one, or the one that watches.
        certificate: Certificate for TLS; None for none.
        key: Its key.
        guard: Who may ask, how often, from where.
        outputs: What is looked at in a row, and what of an answer leaves.
        cache_bytes: Most bytes of the response cache of each model; None for no cache.
        cache_ttl: How long an answer is good.
        trace: Address of the collector of traces; None for none.
        trace_rate: Share of the requests without `traceparent` that is traced.
        queue: `"auto"` for a queue before slow models, `"on"` before all, `"off"` before none.
        queue_options: Bounds of the queues, as for `BatchQueue`.
        routes: File of routes; None for none.
        budgets: File of the budgets of teams; None for none.
        metrics_folder: Where workers keep their metrics for each other; None where there is one process.
    """

    models: Path | None
    home: Path | None
    registry: str | None = None
    packages: str | None = None
    stage: str = "Production"
    pinned: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8300
    grpc_port: int | None = None
    log: Path | None = None
    contract: Path | None = None
    max_bytes: int = 4 << 30
    max_body: int = 8 << 20
    deadline: float = 1.0
    way: Way = "hot"
    workers: int = 1
    worker: int | None = None
    certificate: Path | None = None
    key: Path | None = None
    guard: GuardPlan = field(default_factory=GuardPlan)
    outputs: OutputPlan = field(default_factory=OutputPlan)
    cache_bytes: int | None = None
    cache_ttl: str = "1m"
    trace: str | None = None
    trace_rate: float = 0.0
    queue: Queueing = "auto"
    queue_options: Mapping[str, Any] = field(default_factory=dict)
    routes: Path | None = None
    budgets: Path | None = None
    metrics_folder: Path | None = None

    def __post_init__(self) -> None:
        if (self.models is None) == (self.home is None and self.registry is None):
            raise InvalidInput("--models", self.models, "be given, or --home or --registry, and not both")
        only_with_a_database("--registry", self.registry, packages=self.packages, artifacts=None)
        if self.home is not None and self.registry is None and not self.home.is_dir():
            # Made now, it would serve nothing, and look like one whose path is misspelt.
            raise InvalidInput("--home", str(self.home), "be a folder that there is")
        if self.stage not in _STAGES:
            raise InvalidInput("--stage", self.stage, f"be one of {', '.join(_STAGES)}")
        if self.models is not None and self.stage != _STAGES[0]:
            raise InvalidInput(
                "--stage", self.stage, "go with --home or --registry", "In --models the highest number answers"
            )
        if (self.certificate is None) != (self.key is None):
            raise InvalidInput("--tls-key", self.key, "go with --tls-cert")
        if self.workers < 1:
            raise InvalidInput("--workers", self.workers, "be at least 1")
        if not 0 < self.deadline < 1e6:
            raise InvalidInput("--deadline", self.deadline, "be a number of seconds above 0")
        for option, port in (("--port", self.port), ("--grpc-port", self.grpc_port)):
            if port is not None and not 0 <= port <= 65_535:
                raise InvalidInput(option, port, "be in 0 to 65535")
        if self.queue not in ("auto", "on", "off"):
            raise InvalidInput("--queue", self.queue, "be auto, on or off")
        for name, value in self.queue_options.items():
            if self.queue != "on":
                raise InvalidInput(f"--{name.replace('_', '-')}", value, "go with --queue on")
            least = 0 if name == "max_delay" else 1
            if not least <= value < 1e9:
                raise InvalidInput(f"--{name.replace('_', '-')}", value, f"be at least {least}")
        check_tracing(self.trace, self.trace_rate)
        try:
            duration(self.cache_ttl)
        except InvalidInput as error:
            raise InvalidInput("--cache-ttl", self.cache_ttl, f"be a length of time: {error}") from None

    @property
    def shared(self) -> bool:
        """Whether other processes listen on the same port."""
        return self.worker is not None

    def catalogue(self, registry: Registry | None) -> Catalogue:
        """Opens where the models come from: a registry, or the folder where there is none."""
        if registry is not None:
            return RegistryCatalogue(registry, stage=self.stage)
        assert self.models is not None  # noqa: S101
        return FolderCatalogue(self.models)

    def opened(self) -> Registry | None:
        """Opens the registry; None where models come from a folder."""
        if self.home is not None:
            if self.registry is not None:
                attach(self.home, self.registry, packages=self.packages)
            return Registry(self.home)
        if self.registry is None:
            return None
        if not is_database(self.registry) and not Path(self.registry).is_dir():
            raise InvalidInput("--registry", self.registry, "be a folder that there is")
        return Registry(self.registry, packages=self.packages)

    def tracing(self) -> Tracing | None:
        """Makes what traces requests; None where nothing does."""
        return tracing_to(self.trace, self.trace_rate, service="vitok-models")

    def cache(self) -> ResponseCache:
        """Makes the cache of a model."""
        assert self.cache_bytes is not None  # noqa: S101
        return ResponseCache(max_bytes=self.cache_bytes, ttl=self.cache_ttl)

    def command(self, worker: int, *, port: int, grpc_port: int | None, metrics_folder: Path) -> list[str]:
        """Returns the command line of a worker."""
        options: dict[str, object] = {
            "models": self.models,
            "home": self.home,
            "registry": self.registry,
            "packages": self.packages,
            "stage": self.stage,
            "pin": list(self.pinned),
            "host": self.host,
            "port": port,
            "grpc-port": grpc_port,
            "log": self.log,
            "contract": self.contract,
            "max-memory": self.max_bytes,
            "max-body": self.max_body,
            "deadline": self.deadline,
            "door": self.way,
            "tls-cert": self.certificate,
            "tls-key": self.key,
            "cache": self.cache_bytes,
            "cache-ttl": self.cache_ttl,
            "trace": self.trace,
            "trace-rate": self.trace_rate,
            "queue": self.queue,
            **{name.replace("_", "-"): value for name, value in self.queue_options.items()},
            "routes": self.routes,
            "budgets": self.budgets,
            "worker": worker,
            "metrics-folder": metrics_folder,
        }
        given = flags(options | self.guard.options() | self.outputs.options())
        return [sys.executable, "-m", "vitok", "serve-models", *given, "--json"]


def serve_plan(plan: ServingPlan, *, ready: Callable[[dict[str, Any]], None], tell: Callable[[str], None]) -> None:
    """Serves models in this process until SIGTERM or SIGINT; then answers what was asked and returns.

    Args:
        plan: What is served.
        ready: Gets where the service is to be found, once it accepts connections.
        tell: Gets what fails, in sentences.

    Raises:
        VitokError: If a pinned model cannot be loaded, or an address cannot be used.
    """
    with options_named(certificate="--tls-cert", key="--tls-key"):
        tls = Tls(plan.certificate, plan.key) if plan.certificate is not None and plan.key is not None else None
    services: list[Running] = []
    failures: list[VitokError] = []
    stop = threading.Event()
    bound: list[int] = []
    with contextlib.ExitStack() as resources:
        with options_named(**REGISTRY_OPTIONS):
            registry = plan.opened()
        catalogue = plan.catalogue(registry)
        tracing = plan.tracing()
        if tracing is not None:
            resources.callback(tracing.close)
        dressing = Dressing(catalogue, contract=plan.contract, log=plan.log, worker=plan.worker, outputs=plan.outputs)
        resources.callback(dressing.close)
        costing = Costing(guard=plan.guard.guard(), keys=plan.guard.keys, budgets=plan.budgets)
        resources.callback(costing.close)
        host = _host(plan, catalogue, dressing, tracing, costing)
        resources.callback(host.close)

        def changed() -> None:
            for service in services:
                refresh(service.door, host)

        host.on_change(changed)
        metrics = Metrics()
        shared = None
        if plan.metrics_folder is not None:
            shared = SharedMetrics(plan.metrics_folder, metrics, latencies=functools.partial(_latencies, host))
            resources.callback(shared.close)

        @contextlib.asynccontextmanager
        async def lifespan(_: Any) -> AsyncIterator[None]:
            async with contextlib.AsyncExitStack() as stack:
                if shared is not None:
                    await stack.enter_async_context(_published(shared))
                if isinstance(host, RoutedHost):
                    stack.push_async_callback(host.aclose)
                if plan.grpc_port is not None:
                    try:
                        bound.append(await stack.enter_async_context(_grpc(plan, plan.grpc_port, host, changed)))
                    except VitokError as error:
                        failures.append(error)
                        raise
                yield

        def follow() -> None:
            said = ""
            while not stop.wait(_FOLLOW_EVERY_S):
                try:
                    host.follow()
                    problem = "" if registry is None else registry.problem()
                except (VitokError, OSError) as error:
                    problem = str(error)
                if problem:
                    # Shown where one asks whether all is well; what was loaded goes on.
                    host.failures[_REGISTRY] = problem
                else:
                    host.failures.pop(_REGISTRY, None)
                told = "; ".join(f"{name}: {reason}" for name, reason in host.failures.items())
                if told and told != said:
                    tell(f"the version before goes on: {told}")
                said = told

        thread = threading.Thread(target=follow, name="follower", daemon=True)

        def started(service: Running) -> None:
            services.append(service)
            thread.start()
            if plan.worker is not None:
                until_orphaned(sys.stdin.read, service.stop)
            grpc = f"{plan.host}:{bound[0]}" if bound else None
            ready({"http": service.url, "grpc": grpc, "models": sorted(host.catalogue.names())})

        app = inference_application(host, metrics=metrics, lifespan=lifespan, shared=shared)
        try:
            serve(
                app,
                list(host.endpoints.values()),
                host=plan.host,
                port=plan.port,
                ready=started,
                max_body=plan.max_body,
                tls=tls,
                door=plan.way,
                reuse_port=plan.shared,
            )
        except ServiceError as error:
            # What kept the application from starting says more than that it did not.
            raise (failures[0] if failures else error) from None
        finally:
            stop.set()
            if thread.ident is not None:
                thread.join()


def _host(
    plan: ServingPlan, catalogue: Catalogue, dressing: Dressing, tracing: Tracing | None, costing: Costing
) -> ModelHost:
    queue: Mapping[str, Any] | bool | None = {"auto": None, "on": True, "off": False}[plan.queue]
    if plan.queue_options:
        queue = plan.queue_options

    def dress(hosted: Hosted) -> None:
        dressing(hosted)
        costing.dress(hosted)

    options: dict[str, Any] = {
        "max_bytes": plan.max_bytes,
        "dress": dress,
        "admit": dressing.admit,
        "pinned": plan.pinned,
        "guard": costing.guard,
        "max_body": plan.max_body,
        "deadline": plan.deadline,
        "queue": queue,
        "cache": None if plan.cache_bytes is None else plan.cache,
        "tracing": tracing,
        "problems": dressing.problems,
    }
    if plan.routes is not None:
        return routed_host(plan.routes, catalogue, dressing, options, costing)
    host = ModelHost(catalogue, **options)
    host.start()
    return host


def _latencies(host: ModelHost) -> dict[str, LatencyHistogram]:
    return {
        f"{path}:{stage}": found
        for path, hosted in host.by_path().items()
        for stage, found in hosted.stages.histograms.items()
    }


@contextlib.asynccontextmanager
async def _published(shared: SharedMetrics) -> AsyncIterator[None]:
    task = asyncio.create_task(shared.keep_published())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def _grpc(plan: ServingPlan, port: int, host: ModelHost, changed: Callable[[], None]) -> AsyncIterator[int]:
    from vitok.serving.inference_grpc import GrpcAddress, grpc_door

    address = GrpcAddress(
        host=plan.host,
        port=port,
        certificate=plan.certificate,
        key=plan.key,
        reuse_port=plan.shared,
        max_message=plan.max_body,
    )
    async with grpc_door(host, address, changed=changed) as found:
        yield found


def serve_workers(plan: ServingPlan, *, ready: Callable[[dict[str, Any]], None], tell: Callable[[str], None]) -> None:
    """Serves in several processes and watches them, until SIGTERM or SIGINT.

    Raises:
        ServiceError: If an address cannot be used, or a worker ends before it was ready.
    """
    with contextlib.ExitStack() as resources:
        # The ports are held, without listening, so that they stay ours while a worker is away.
        ports = [
            resources.enter_context(_held(plan.host, port)).getsockname()[1] if port is not None else None
            for port in (plan.port, plan.grpc_port)
        ]
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="vitok-metrics-", dir=_memory())))
        waiting = set(range(plan.workers))

        def one_ready(place: int, line: str) -> None:
            if place in waiting:
                waiting.discard(place)
                if not waiting:
                    ready(codec.loads(line))

        workers = Workers(
            lambda place: plan.command(place, port=ports[0] or 0, grpc_port=ports[1], metrics_folder=folder),
            plan.workers,
            ready=one_ready,
            tell=tell,
        )
        workers.run()


def _memory() -> str | None:
    # What workers tell each other once a second need not go to a disk.
    place = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
    return str(place) if place.is_dir() and os.access(place, os.W_OK) else None


def _held(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    held = socket.socket(family, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        held.bind((host, port))
    except OSError as error:
        held.close()
        raise ServiceError(
            f"cannot listen on {host} port {port}: {error}. Choose another, or 0 for a free one"
        ) from None
    return held


def n_bytes(option: str, text: str) -> int:
    """Reads a number of bytes, such as 4G, 512M or 1000.

    Raises:
        InvalidInput: If it is none.

    Example:
        >>> n_bytes("--max-memory", "512M")
        536870912
    """
    digits = text.strip().upper().removesuffix("B").removesuffix("I")
    number, unit = (digits[:-1], digits[-1]) if digits and digits[-1] in _UNITS else (digits, "")
    if not number.isdecimal() or int(number) < 1:
        raise InvalidInput(option, text, "be a number of bytes, such as 4G or 512M")
    return int(number) * _UNITS[unit]


def serve_models(
    models: Annotated[Path | None, typer.Option(help="Folder of NAME/VERSION/ with a model package in each.")] = None,
    home: Annotated[Path | None, typer.Option(help="Folder of vitok whose registry says what answers.")] = None,
    registry: RegistryAt = None,
    packages: PackagesAt = None,
    stage: Annotated[str, typer.Option(help="Stage in the registry: Production, Staging, canary, latest.")] = (
        "Production"
    ),
    pin: Annotated[list[str] | None, typer.Option(help="Model to load at once and keep; may be repeated.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8300,
    grpc_port: Annotated[int | None, typer.Option(help="Port of gRPC; 0 takes a free one; none by default.")] = None,
    log: Annotated[Path | None, typer.Option(help="Folder in which each model gets a decision log.")] = None,
    contract: Annotated[Path | None, typer.Option(help="Contract that the rows of a model must keep.")] = None,
    max_memory: Annotated[str, typer.Option(help="Most memory that loaded models take, such as 4G.")] = "4G",
    max_body: Annotated[str, typer.Option(help="Longest body of a request, such as 8M.")] = "8M",
    deadline: Annotated[float, typer.Option(help="Seconds within which an answer is of use.")] = 1.0,
    queue: Annotated[str, typer.Option(help="'auto' queues before slow models, 'on' before all, 'off' none.")] = "auto",
    max_rows: Annotated[int | None, typer.Option(help="Most rows of a batch of a queue.")] = None,
    max_waiting: Annotated[int | None, typer.Option(help="Most rows that wait; beyond that, 429.")] = None,
    max_delay: Annotated[float | None, typer.Option(help="Seconds that a batch waits for more rows.")] = None,
    cache: Annotated[str | None, typer.Option(help="Keeps answers of each model, in so much: 64M.")] = None,
    cache_ttl: Annotated[str, typer.Option(help="How long a kept answer is good, such as 10m.")] = "1m",
    trace: Annotated[str | None, typer.Option(help="Sends traces there, OTLP over HTTP: http://.../v1/traces.")] = None,
    trace_rate: Annotated[float, typer.Option(help="Share traced of what comes without traceparent.")] = 0.0,
    routes: Annotated[Path | None, typer.Option(help="File of routes; see 'vitok routes check'.")] = None,
    budgets: Annotated[Path | None, typer.Option(help="File of budgets ('vitok cost budget').")] = None,
    keys: Annotated[Path | None, typer.Option(help="File of keys ('vitok keys'): who has none is refused.")] = None,
    key_limit: Annotated[str | None, typer.Option(help="Requests a key, or address: 100/1s, 100/1s:200.")] = None,
    user_limit: Annotated[str | None, typer.Option(help="Requests a user of a key: 5/1s.")] = None,
    user_header: Annotated[str, typer.Option(help="Header that names the user.")] = "x-user-id",
    limit_store: Annotated[str | None, typer.Option(help="Redis in which all processes count: redis://...")] = None,
    allow: Annotated[list[str] | None, typer.Option(help="Network that may ask; may be repeated.")] = None,
    deny: Annotated[list[str] | None, typer.Option(help="Network that may not; may be repeated.")] = None,
    trust_proxy: Annotated[list[str] | None, typer.Option(help="Proxy whose X-Forwarded-For is believed.")] = None,
    screen: Annotated[str | None, typer.Option(help="Rows unlike the reference profile: count or refuse.")] = None,
    round_: Annotated[int | None, typer.Option("--round", help="Digits of a probability that leave.")] = None,
    noise: Annotated[float | None, typer.Option(help="Noise in log-odds, the same for the same input.")] = None,
    noise_key: Annotated[Path | None, typer.Option(help="File of its secret, 16 to 64 bytes.")] = None,
    threshold: Annotated[list[float] | None, typer.Option(help="Probability that noise does not cross.")] = None,
    floor: Annotated[str | None, typer.Option(help="Withholds answers of less confidence: 0.8, or package.")] = None,
    door: Annotated[str, typer.Option(help="'hot', or 'asgi' for every request through ASGI.")] = "hot",
    workers: Annotated[int, typer.Option(help="How many processes share the port.")] = 1,
    worker: Annotated[int | None, typer.Option(hidden=True)] = None,
    metrics_folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificates in PEM, for TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Their key in PEM.")] = None,
    *,
    json: Annotated[bool, typer.Option("--json", help="Says where it is to be found as JSON.")] = False,
) -> None:
    """Serves any models over the Open Inference Protocol, HTTP and gRPC, until it is stopped."""
    with plain_errors():
        if door not in ("hot", "asgi"):
            raise InvalidInput("--door", door, "be hot or asgi")
        if queue not in ("auto", "on", "off"):
            raise InvalidInput("--queue", queue, "be auto, on or off")
        bounds = {"max_rows": max_rows, "max_waiting": max_waiting, "max_delay": max_delay}
        plan = ServingPlan(
            models=models,
            home=home,
            registry=registry,
            packages=packages,
            stage=stage,
            pinned=tuple(pin or ()),
            host=host,
            port=port,
            grpc_port=grpc_port,
            log=log,
            contract=contract,
            max_bytes=n_bytes("--max-memory", max_memory),
            max_body=n_bytes("--max-body", max_body),
            deadline=deadline,
            way="hot" if door == "hot" else "asgi",
            workers=workers,
            worker=worker,
            certificate=tls_cert,
            key=tls_key,
            guard=GuardPlan(
                keys=keys,
                key_limit=key_limit,
                user_limit=user_limit,
                user_header=user_header,
                limit_store=limit_store,
                allow=tuple(allow or ()),
                deny=tuple(deny or ()),
                trust=tuple(trust_proxy or ()),
            ),
            outputs=OutputPlan(
                screen=screen,  # type: ignore[arg-type]  # it is looked at there
                decimals=round_,
                noise=noise,
                noise_key=noise_key,
                thresholds=tuple(threshold or ()),
                floor=floor,
            ),
            cache_bytes=None if cache is None else n_bytes("--cache", cache),
            cache_ttl=cache_ttl,
            trace=trace,
            trace_rate=trace_rate,
            queue=queue,  # type: ignore[arg-type]  # it was looked at above
            queue_options={name: value for name, value in bounds.items() if value is not None},
            routes=routes,
            budgets=budgets,
            metrics_folder=metrics_folder,
        )

        def ready(found: dict[str, Any]) -> None:
            if json:
                typer.echo(codec.dumps(found))
                sys.stdout.flush()
                return
            _say(f"models   POST {found['http']}/v2/models/NAME/infer   ({', '.join(found['models']) or 'none yet'})")
            if plan.guard.empty and not _loopback(plan.host):
                _say("guard    none: whoever reaches this address may ask; see --keys, --allow and --key-limit")
            if found["grpc"]:
                _say(f"gRPC     {found['grpc']}  inference.GRPCInferenceService, with reflection")
            _say(f"API      {found['http']}/openapi.json   metrics {found['http']}/metrics   stop with Ctrl-C")

        run = serve_workers if workers > 1 and worker is None else serve_plan
        run(plan, ready=ready, tell=_say)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _say(text: str) -> None:
    typer.echo(text, err=True)
