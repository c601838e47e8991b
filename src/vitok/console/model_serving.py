"""`vitok serve-models`: models of a folder or a registry over the Open Inference Protocol, HTTP and gRPC."""

import contextlib
import json as codec
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from vitok import contracts
from vitok.console.exits import plain_errors
from vitok.contracts import Contract
from vitok.errors import InvalidInput, NotFound, ServiceError, VitokError
from vitok.models.calibrators import calibrator_from_dict
from vitok.registry import Registry
from vitok.serving import Metrics, Running, serve
from vitok.serving.hosting import Catalogue, FolderCatalogue, ModelHost, RegistryCatalogue
from vitok.serving.inference import Answered, Breach, Hosted
from vitok.serving.inference_http import inference_application, refresh
from vitok.serving.inference_log import InferenceLog
from vitok.serving.runtime import PackageFiles, Runtime
from vitok.serving.server import Tls
from vitok.serving.workers import Workers, until_orphaned

_FOLLOW_EVERY_S = 0.05
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

Way = Literal["hot", "asgi"]


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """What is served, and how: the options of the command.

    Attributes:
        models: Folder of `<name>/<version>/`; or
        home: folder of vitok with a registry, whose version in `stage` answers.
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
    """

    models: Path | None
    home: Path | None
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

    def __post_init__(self) -> None:
        if (self.models is None) == (self.home is None):
            raise InvalidInput("--models", self.models, "be given, or --home, and not both")
        if (self.certificate is None) != (self.key is None):
            raise InvalidInput("--tls-key", self.key, "go with --tls-cert")
        if self.workers < 1:
            raise InvalidInput("--workers", self.workers, "be at least 1")

    @property
    def shared(self) -> bool:
        """Whether other processes listen on the same port."""
        return self.worker is not None

    def catalogue(self) -> Catalogue:
        """Opens where the models come from."""
        if self.models is not None:
            return FolderCatalogue(self.models)
        assert self.home is not None  # noqa: S101
        return RegistryCatalogue(Registry(self.home), stage=self.stage)

    def command(self, worker: int, *, port: int, grpc_port: int | None) -> list[str]:
        """Returns the command line of a worker."""
        options: dict[str, object] = {
            "models": self.models,
            "home": self.home,
            "stage": self.stage,
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
            "worker": worker,
        }
        given = [text for name, value in options.items() if value is not None for text in (f"--{name}", str(value))]
        pins = [text for name in self.pinned for text in ("--pin", name)]
        return [sys.executable, "-m", "vitok", "serve-models", *given, *pins, "--json"]


class ModelLog:
    """The decision log of a model in this process, for all its versions that answer; each with its own calibrator.

    Args:
        folder: Folder of the log.
        name: Name of the model.
        catalogue: Where the packages of its versions are.
        hosted: The model as it was first loaded, which says how many columns there are.

    Raises:
        StoreError: If another process writes the folder, or it cannot be written.
    """

    def __init__(self, folder: Path, name: str, catalogue: Catalogue, hosted: Hosted) -> None:
        self._catalogue = catalogue
        self._lock = threading.Lock()
        self._calibrators: dict[str, Callable[[np.ndarray], np.ndarray] | None] = {}
        self._names = feature_names(catalogue, hosted.runtime)
        self._log = InferenceLog(folder, system=name, features=self._names)

    def record(self, batch: Answered) -> Sequence[bytes]:
        """Writes a batch; returns the decision id of each row."""
        # The path with a version and the one without may answer on two threads.
        with self._lock:
            self._log.calibrator = self._calibrate(batch.version)
            return self._log.record(batch)

    def admit(self, version: str, names: Sequence[str]) -> None:
        """Says whether a version may be logged here.

        Raises:
            ServiceError: If its columns have other names than those of the log.
        """
        if list(names) != self._names:
            raise ServiceError(f"{version}: its inputs are not those of the log: {', '.join(self._names)}")

    def close(self) -> None:
        """Seals the log."""
        self._log.close()

    def _calibrate(self, version: str) -> Callable[[np.ndarray], np.ndarray] | None:
        if version not in self._calibrators:
            self._calibrators[version] = read_calibrator(self._catalogue, version)
        return self._calibrators[version]


def read_json(catalogue: Catalogue, version: str, name: str) -> Any:
    """Reads a file of JSON from the package of a version such as `"fraud/3"`; None where there is none.

    Raises:
        ServiceError: If it is no JSON.
    """
    model, _, number = version.rpartition("/")
    package: PackageFiles | Path = catalogue.package(model, number)
    try:
        path = package / name if isinstance(package, Path) else package.path(name)
        return codec.loads(path.read_bytes())
    except (NotFound, FileNotFoundError):
        return None
    except (OSError, ValueError) as error:
        raise ServiceError(f"{version}: {name} cannot be read: {error}") from None


def read_calibrator(catalogue: Catalogue, version: str) -> Callable[[np.ndarray], np.ndarray] | None:
    """Reads the calibrator of a version; None where it has none.

    Raises:
        ServiceError: If it cannot be used.
    """
    described = read_json(catalogue, version, "calibrator.json")
    if described is None:
        return None
    try:
        return calibrator_from_dict(described)
    except (VitokError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ServiceError(f"{version}: calibrator.json cannot be used: {error}") from None


def feature_names(catalogue: Catalogue, runtime: Runtime) -> list[str]:
    """Returns the names of the columns, from `inputs` of signature.json; x0, x1, ... where it does not say.

    Raises:
        ServiceError: If it names another number of columns.
    """
    n = runtime.n_features
    signature = read_json(catalogue, runtime.version, "signature.json")
    names = signature.get("inputs") if isinstance(signature, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return [f"x{i}" for i in range(n)]
    if len(names) != n:
        raise ServiceError(f"{runtime.version}: signature.json names {len(names)} inputs, the model takes {n}")
    return names


def rules_of(contract: Contract, names: Sequence[str]) -> Callable[[np.ndarray], list[Breach]]:
    """Returns the rules of a contract for the columns of a matrix.

    Raises:
        InvalidInput: If a column is no field of the contract.
    """
    check = contract.matrix_checker(names)

    def rules(X: np.ndarray) -> list[Breach]:
        return [(row, found.field, found.message) for row, found in check(X)]

    return rules


class Dressing:
    """Gives each model that is loaded its deadline, its rules and its log.

    Args:
        plan: What is served.
        catalogue: Where the models come from.
    """

    def __init__(self, plan: ServingPlan, catalogue: Catalogue) -> None:
        self._plan = plan
        self._catalogue = catalogue
        self._contract = None if plan.contract is None else contracts.load(plan.contract)
        self._logs: dict[str, ModelLog] = {}

    def __call__(self, hosted: Hosted) -> None:
        """Dresses a model."""
        hosted.deadline = self._plan.deadline
        if not hosted.runtime.takes_rows:
            return
        if self._contract is not None:
            try:
                hosted.rules = rules_of(self._contract, feature_names(self._catalogue, hosted.runtime))
            except InvalidInput as error:
                raise ServiceError(f"{hosted.runtime.version} does not fit the contract: {error}") from None
        if self._plan.log is not None:
            log = self._logs.get(hosted.name)
            if log is None:
                folder = self._plan.log / hosted.name
                if self._plan.worker is not None:
                    folder = folder / f"worker-{self._plan.worker}"
                log = self._logs[hosted.name] = ModelLog(folder, hosted.name, self._catalogue, hosted)
            hosted.recorder = log

    def admit(self, runtime: Runtime) -> None:
        """Says whether a version may answer: what is written of its answers must be right from the first on.

        Raises:
            ServiceError: If its signature or calibrator cannot be used, or its columns are not those of the log.
        """
        if self._plan.log is None or not runtime.takes_rows:
            return
        names = feature_names(self._catalogue, runtime)
        read_calibrator(self._catalogue, runtime.version)
        log = self._logs.get(runtime.version.rpartition("/")[0])
        if log is not None:
            log.admit(runtime.version, names)

    def close(self) -> None:
        """Seals the logs."""
        for log in self._logs.values():
            log.close()


def serve_plan(plan: ServingPlan, *, ready: Callable[[dict[str, Any]], None], tell: Callable[[str], None]) -> None:
    """Serves models in this process until SIGTERM or SIGINT; then answers what was asked and returns.

    Args:
        plan: What is served.
        ready: Gets where the service is to be found, once it accepts connections.
        tell: Gets what fails, in sentences.

    Raises:
        VitokError: If a pinned model cannot be loaded, or an address cannot be used.
    """
    tls = Tls(plan.certificate, plan.key) if plan.certificate is not None and plan.key is not None else None
    services: list[Running] = []
    failures: list[VitokError] = []
    stop = threading.Event()
    bound: list[int] = []
    with contextlib.ExitStack() as resources:
        catalogue = plan.catalogue()
        dressing = Dressing(plan, catalogue)
        resources.callback(dressing.close)
        host = ModelHost(catalogue, max_bytes=plan.max_bytes, dress=dressing, admit=dressing.admit, pinned=plan.pinned)
        resources.callback(host.close)
        host.start()

        def changed() -> None:
            for service in services:
                refresh(service.door, host)

        @contextlib.asynccontextmanager
        async def lifespan(_: Any) -> AsyncIterator[None]:
            if plan.grpc_port is None:
                yield
                return
            from vitok.serving.inference_grpc import GrpcAddress, grpc_door

            address = GrpcAddress(
                host=plan.host,
                port=plan.grpc_port,
                certificate=plan.certificate,
                key=plan.key,
                reuse_port=plan.shared,
                max_message=plan.max_body,
            )
            try:
                async with grpc_door(host, address, changed=changed) as port:
                    bound.append(port)
                    yield
            except VitokError as error:
                failures.append(error)
                raise

        def follow() -> None:
            said = ""
            while not stop.wait(_FOLLOW_EVERY_S):
                try:
                    host.follow()
                    told = "; ".join(f"{name}: {reason}" for name, reason in host.failures.items())
                except (VitokError, OSError) as error:
                    told = str(error)
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
            ready({"http": service.url, "grpc": grpc, "models": sorted(catalogue.names())})

        metrics = Metrics()
        app = inference_application(host, metrics=metrics, lifespan=lifespan)
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
        waiting = set(range(plan.workers))

        def one_ready(place: int, line: str) -> None:
            if place in waiting:
                waiting.discard(place)
                if not waiting:
                    ready(codec.loads(line))

        workers = Workers(
            lambda place: plan.command(place, port=ports[0] or 0, grpc_port=ports[1]),
            plan.workers,
            ready=one_ready,
            tell=tell,
        )
        workers.run()


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
    door: Annotated[str, typer.Option(help="'hot', or 'asgi' for every request through ASGI.")] = "hot",
    workers: Annotated[int, typer.Option(help="How many processes share the port.")] = 1,
    worker: Annotated[int | None, typer.Option(hidden=True)] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificates in PEM, for TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Their key in PEM.")] = None,
    *,
    json: Annotated[bool, typer.Option("--json", help="Says where it is to be found as JSON.")] = False,
) -> None:
    """Serves any models over the Open Inference Protocol, HTTP and gRPC, until it is stopped."""
    with plain_errors():
        if door not in ("hot", "asgi"):
            raise InvalidInput("--door", door, "be hot or asgi")
        plan = ServingPlan(
            models=models,
            home=home,
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
        )

        def ready(found: dict[str, Any]) -> None:
            if json:
                typer.echo(codec.dumps(found))
                sys.stdout.flush()
                return
            _say(f"models   POST {found['http']}/v2/models/NAME/infer   ({', '.join(found['models']) or 'none yet'})")
            if found["grpc"]:
                _say(f"gRPC     {found['grpc']}  inference.GRPCInferenceService, with reflection")
            _say(f"API      {found['http']}/openapi.json   metrics {found['http']}/metrics   stop with Ctrl-C")

        run = serve_workers if workers > 1 and worker is None else serve_plan
        run(plan, ready=ready, tell=_say)


def _say(text: str) -> None:
    typer.echo(text, err=True)
