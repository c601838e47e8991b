"""Makes the routes of a file: its targets, the endpoints that answer for them, and an account of what each would do."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitok.contracts.predicates import parse
from vitok.errors import InvalidInput, NotFound, ServiceError
from vitok.serving.balance import Balancer, ByWeight, LeastCost, LeastLatency, PeakEwma, PowerOfTwo
from vitok.serving.breaker import BreakerRules, Nanoseconds
from vitok.serving.cascade import Cascade
from vitok.serving.chains import Fallback
from vitok.serving.hosted import Hosted
from vitok.serving.outliers import OutlierRules
from vitok.serving.pool import Pool
from vitok.serving.queued import QueuedModel
from vitok.serving.remote import RemoteModel
from vitok.serving.retries import NO_DEADLINE, Budget, Hedge
from vitok.serving.route_files import (
    BreakerSpec,
    CanaryTarget,
    CascadeTarget,
    CheapestTarget,
    ConstantTarget,
    ContentTarget,
    FallbackTarget,
    FastestTarget,
    ModelTarget,
    PoolTarget,
    RemoteTarget,
    RouteFile,
    RouteSpec,
    ShadowTarget,
    WeightedTarget,
)
from vitok.serving.routed import REQUEST_ID, RoutedEndpoint
from vitok.serving.routes import Route
from vitok.serving.routing import Canary, ContentRules, Weighted
from vitok.serving.runtime import Runtime
from vitok.serving.selection import CostAware, LowestLatency
from vitok.serving.shadow import Shadow
from vitok.serving.targets import Batch, Constant, LocalModel, LocalTarget, Scored, Target, asked, close_all
from vitok.serving.tensors import TensorSpec
from vitok.serving.thresholds import confidence_of

GetModel = Callable[[str, str | None], Hosted]
"""Returns a model of this process by name and version, loaded."""
_TENSORS = {"string": "BYTES", "number": "FP64", "integer": "INT64", "boolean": "BOOL"}
_BALANCERS: Mapping[str, Callable[[], Balancer]] = {
    "less-busy": PowerOfTwo,
    "peak-ewma": PeakEwma,
    "fastest": LeastLatency,
    "weights": ByWeight,
    "cheapest": LeastCost,
}


class HostedModel:
    """A model of the host as a target: the version that is in force, whichever that is by then.

    Args:
        name: What choices and errors call it.
        hosted: The model; it must not be let go.
        cost: What a row costs; by default the processor seconds that it takes.
        quality: How good it is; larger is better.
    """

    def __init__(self, name: str, hosted: Hosted, *, cost: float | None = None, quality: float | None = None) -> None:
        self.name = name
        self.quality = quality
        self._hosted = hosted
        self._cost = cost
        self._runtime = hosted.runtime
        self._model = self._made(hosted.runtime)

    @property
    def version(self) -> str:
        """Version in force."""
        return self._hosted.runtime.version

    @property
    def cost(self) -> float:
        """What a row costs."""
        return self._model.cost

    def now(self) -> LocalModel:
        """Returns the version in force as a target."""
        runtime = self._hosted.runtime
        if runtime is not self._runtime:
            self._runtime, self._model = runtime, self._made(runtime)
        return self._model

    async def call(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch."""
        return await self.now().call(batch, deadline)

    def _made(self, runtime: Runtime) -> LocalModel:
        return LocalModel.of(runtime, name=self.name, cost=self._cost, quality=self.quality)


class QuickModel(HostedModel):
    """One that is fast enough for the event loop."""

    def score(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch at once."""
        return self.now().score(batch, deadline)


class Timed:
    """A target that gets so much time at most.

    Args:
        target: The target.
        seconds: How much.
        clock: Of the deadlines.
    """

    def __init__(self, target: Target, seconds: float, *, clock: Nanoseconds = time.perf_counter_ns) -> None:
        self.targets = (target,)
        self.name = target.name
        self._limit = round(1e9 * seconds)
        self._clock = clock

    @property
    def version(self) -> str:
        """That of the target."""
        return self.targets[0].version

    @property
    def cost(self) -> float:
        """That of the target."""
        return self.targets[0].cost

    @property
    def quality(self) -> float | None:
        """That of the target."""
        return self.targets[0].quality

    def until(self, deadline: int) -> int:
        """Returns the deadline that the target is told."""
        return min(deadline, self._clock() + self._limit)

    async def call(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch.

        Raises:
            TimedOut: If the time is over.
        """
        return await asked(self.targets[0], batch, self.until(deadline), self._clock)

    async def aclose(self) -> None:
        """Closes what the target holds open."""
        await close_all(self.targets)


class TimedHere(Timed):
    """One of this process, which cannot be interrupted: it is only told its deadline."""

    def score(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch."""
        target = self.targets[0]
        assert isinstance(target, LocalTarget)  # noqa: S101
        return target.score(batch, self.until(deadline))


@dataclass(frozen=True, kw_only=True)
class BuiltRoute:
    """A route that was made.

    Attributes:
        name: Its name.
        endpoint: What answers for it.
        targets: Its targets by name, without what limits their time.
        types: What conditions may look at, with its type.
    """

    name: str
    endpoint: RoutedEndpoint
    targets: Mapping[str, Target]
    types: Mapping[str, str]

    @property
    def features(self) -> list[str]:
        """Names of the columns of the matrix."""
        return list(self.types)[: self.endpoint.hosted.runtime.inputs[0].shape[1]]


def build_route(
    file: RouteFile, name: str, get: GetModel, *, columns: Callable[[Runtime], Sequence[str]] | None = None
) -> BuiltRoute:
    """Makes a route of a file.

    Args:
        file: The file.
        name: Name of the route.
        get: Returns the models of this process.
        columns: Names of the columns of a model's matrix, under which conditions find them; by default x0, x1, ...

    Raises:
        InvalidInput: If something does not fit together; the message names the place in the file.
        ServiceError: If a model cannot be run.
    """
    return _Builder(file, name, get, columns or _numbered).route()


def _numbered(runtime: Runtime) -> list[str]:
    return [f"x{i}" for i in range(runtime.n_features)]


class _Builder:
    def __init__(self, file: RouteFile, name: str, get: GetModel, columns: Callable[[Runtime], Sequence[str]]) -> None:
        self._file = file
        self._name = name
        self._spec: RouteSpec = file.routes[name]
        self._get = get
        self._columns = columns
        self._models = {place: self._hosted(place) for place in file.reached(self._spec.target)}
        self._inner: dict[str, Target] = {}
        self._outer: dict[tuple[str, str], Target] = {}
        self._types: dict[str, str] = {}

    def route(self) -> BuiltRoute:
        spec, place = self._spec, f"routes.{self._name}"
        matrix, features = self._matrix()
        for feature in features:
            if feature in spec.columns:
                raise self._file.error(f"{place}.columns.{feature}", feature, "not be a column of the matrix as well")
        self._types = dict.fromkeys(features, "number") | dict(spec.columns)
        inputs = [matrix, *(TensorSpec(key, _TENSORS[kind], (-1,)) for key, kind in spec.columns.items())]
        if spec.unit not in ("", REQUEST_ID, *self._types):
            known = ", ".join([REQUEST_ID, *self._types])
            raise self._file.error(f"{place}.unit", spec.unit, f"be one of {known}")
        target = self._target(spec.target, "")
        # Only the features that somebody looks at are cut out for each batch.
        used = self._looked_at()
        with self._at(place):
            endpoint = RoutedEndpoint(
                self._name,
                target,
                inputs=inputs,
                outputs=[TensorSpec(spec.output, "FP64", (-1,))],
                features={feature: k for k, feature in enumerate(features) if feature in used},
                unit=spec.unit,
                version=spec.version,
                deadline=spec.deadline,
            )
        return BuiltRoute(name=self._name, endpoint=endpoint, targets=self._inner, types=self._types)

    def _hosted(self, name: str) -> Hosted | None:
        spec = self._file.targets[name]
        if not isinstance(spec, ModelTarget):
            return None
        place = f"targets.{name}"
        try:
            hosted = self._get(spec.model, spec.version or None)
        except NotFound as error:
            field, value = ("version", spec.version) if spec.version else ("model", spec.model)
            raise self._file.error(f"{place}.{field}", value, "be a model that is served", f"{error}") from None
        if not hosted.runtime.takes_rows:
            raise self._file.error(f"{place}.model", spec.model, "take one matrix of rows")
        return hosted

    def _matrix(self) -> tuple[TensorSpec, Sequence[str]]:
        given, place = self._spec.input, f"routes.{self._name}.input"
        here = {name: hosted.runtime for name, hosted in self._models.items() if hosted is not None}
        widths = {name: runtime.n_features for name, runtime in here.items()}
        if given is not None:
            widths = {"input": given.width} | widths
        if not widths:
            fix = "No model of this process is asked, which would tell"
            raise self._file.error(place, None, "say how many columns the rows have: {width: 30}", fix)
        if len(set(widths.values())) > 1:
            told = ", ".join(f"{name} {width}" for name, width in widths.items())
            raise self._file.error(f"routes.{self._name}.target", told, "take the same number of columns")
        width = next(iter(widths.values()))
        if width < 1:
            raise self._file.error(f"{place}.width", width, "be at least 1")
        if given is not None:
            features = given.features or [f"x{i}" for i in range(width)]
            if len(features) != width or len(set(features)) != width:
                raise self._file.error(f"{place}.features", features, f"be {width} different names")
            return TensorSpec(given.name, given.datatype, (-1, width)), features
        runtime = next(iter(here.values()))
        first = runtime.inputs[0]
        return TensorSpec(first.name, first.datatype, (-1, width)), self._columns(runtime)

    def _looked_at(self) -> set[str]:
        used = {self._spec.unit}
        for name in self._file.reached(self._spec.target):
            spec = self._file.targets[name]
            if isinstance(spec, ContentTarget):
                for rule in spec.rules:
                    used.update(parse(rule.when, self._types).fields)
        return used

    @contextlib.contextmanager
    def _at(self, place: str) -> Iterator[None]:
        try:
            yield
        except InvalidInput as error:
            raise self._file.error(f"{place}.{error.field}", error.value, error.rule, error.fix) from None

    def _target(self, name: str, loop: str) -> Target:
        # What a shadow asks runs on another event loop, and connections belong to one.
        found = self._outer.get((name, loop))
        if found is not None:
            return found
        spec, place = self._file.targets[name], f"targets.{name}"
        with self._at(place):
            made = self._made(name, spec, loop)
        if not loop:
            self._inner[name] = made
        if spec.timeout is not None:
            if isinstance(spec, ConstantTarget):
                raise self._file.error(f"{place}.timeout", spec.timeout, "not be given for a constant")
            made = (TimedHere if isinstance(made, LocalTarget) else Timed)(made, spec.timeout)
        self._outer[name, loop] = made
        return made

    def _made(self, name: str, spec: Any, loop: str) -> Target:
        if isinstance(spec, ModelTarget):
            hosted = self._models[name]
            assert hosted is not None  # noqa: S101
            if not hosted.queueing:
                return QuickModel(name, hosted, cost=spec.cost, quality=spec.quality)
            slow = HostedModel(name, hosted, cost=spec.cost, quality=spec.quality)
            return QueuedModel(slow.now, seconds_per_run=max(hosted.runtime.seconds_per_run, 1e-6))
        if isinstance(spec, RemoteTarget):
            return self._remote(name, spec)
        if isinstance(spec, ConstantTarget):
            return Constant(spec.value, name=name)
        inner = {one: self._target(one, self._loop(spec, one, name, loop)) for one in spec.asks().values()}
        each = [inner[one] for one in spec.asks().values()]
        if isinstance(spec, PoolTarget):
            return Pool(
                each,
                name=name,
                balancer=_BALANCERS[spec.balance](),
                breaker=_rules(spec.breaker),
                outliers=OutlierRules() if spec.eject else None,
                tries=spec.tries,
                retries=Budget(spec.retries.share, reserve=spec.retries.reserve),
                hedge=None if spec.hedge is None else Hedge(**{f: getattr(spec.hedge, f) for f in _HEDGE}),
                weights=spec.weights,
            )
        if isinstance(spec, FallbackTarget):
            return Fallback(each, name=name, margin=spec.margin)
        if isinstance(spec, FastestTarget):
            budget = Budget(spec.retries.share, reserve=spec.retries.reserve)
            return LowestLatency(each, name=name, breaker=_rules(spec.breaker), tries=spec.tries, retries=budget)
        if isinstance(spec, CheapestTarget):
            least = -math.inf if spec.least_quality is None else spec.least_quality
            return CostAware(each, least_quality=least, breaker=_rules(spec.breaker), tries=spec.tries, name=name)
        if isinstance(spec, WeightedTarget):
            return Weighted(each, weights=list(spec.weights.values()), name=name, seed=spec.seed)
        if isinstance(spec, CanaryTarget):
            champion, canary = inner[spec.champion], inner[spec.canary]
            if champion.version == canary.version:
                raise InvalidInput("canary", spec.canary, f"be another version than the champion's, {champion.version}")
            route = Route(champion=champion.version, canary=canary.version, share=spec.share, salt=spec.salt)
            return Canary(route, champion, canary, name=name)
        if isinstance(spec, CascadeTarget):
            auditor = self._target(spec.large, f"{loop}/{name}") if spec.audit else None
            small, large = inner[spec.small], inner[spec.large]
            return Cascade(small, large, threshold=spec.threshold, audit=spec.audit, auditor=auditor, name=name)
        if isinstance(spec, ContentTarget):
            rules = [(rule.when, inner[rule.then]) for rule in spec.rules]
            return ContentRules(rules, otherwise=inner[spec.otherwise], types=self._types, name=name)
        assert isinstance(spec, ShadowTarget)  # noqa: S101
        shadow = inner[spec.shadow] if spec.shadow != spec.main else self._target(spec.shadow, f"{loop}/{name}")
        return Shadow(inner[spec.main], shadow, capacity=spec.capacity, seconds=spec.seconds, tolerance=spec.tolerance)

    @staticmethod
    def _loop(spec: Any, one: str, name: str, loop: str) -> str:
        shadowed = isinstance(spec, ShadowTarget) and one == spec.shadow and one != spec.main
        return f"{loop}/{name}" if shadowed else loop

    def _remote(self, name: str, spec: RemoteTarget) -> RemoteModel:
        headers = dict(spec.headers)
        if spec.key_file:
            if any(key.lower() in ("authorization", "x-api-key") for key in headers):
                raise InvalidInput("key_file", spec.key_file, "not be given beside a header that holds a key")
            try:
                token = self._path(spec.key_file).read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidInput("key_file", spec.key_file, f"be a readable file of ASCII text ({error})") from None
            headers["authorization"] = f"Bearer {token}"
        return RemoteModel(
            spec.url,
            spec.model,
            model_version=spec.version,
            name=name,
            input_name=spec.input,
            output=spec.output,
            datatype=spec.datatype,
            binary=spec.binary,
            cost=spec.cost,
            quality=spec.quality,
            headers=headers,
            connections=spec.connections,
            ca=self._path(spec.ca) if spec.ca else None,
        )

    def _path(self, text: str) -> Path:
        return self._file.path.parent / text


_HEDGE = ("quantile", "share", "reserve", "least")


def _rules(spec: BreakerSpec) -> BreakerRules:
    fields = {name: getattr(spec, name) for name in spec.__struct_fields__}
    fields["slow_after"] = math.inf if spec.slow_after is None else spec.slow_after
    try:
        return BreakerRules(**fields)
    except InvalidInput as error:
        raise InvalidInput(f"breaker.{error.field}", error.value, error.rule, error.fix) from None


def example_of(built: BuiltRoute, request: Mapping[str, Any] | None = None) -> Batch:
    """Makes a batch of one request to look at a route with.

    Args:
        built: The route.
        request: Values by the names of features and columns, and `request_id`; what is missing is 0, or empty.

    Raises:
        InvalidInput: If it names something else, or a value has another type.
    """
    endpoint = built.endpoint
    matrix = endpoint.hosted.runtime.inputs[0]
    names = built.features
    given = dict(request or {})
    unit = str(given.pop(REQUEST_ID, "example"))
    row = np.zeros((1, matrix.shape[1]))
    fields: dict[str, Any] = {}
    for name, kind in built.types.items():
        value = given.pop(name, "" if kind == "string" else False if kind == "boolean" else 0)
        if isinstance(value, str) != (kind == "string") or (kind == "boolean") != isinstance(value, bool):
            raise InvalidInput(name, value, f"be a {kind}")
        fields[name] = [value]
        if name in names:
            row[0, names.index(name)] = value
    if given:
        known = ", ".join([REQUEST_ID, *built.types])
        raise InvalidInput("example", sorted(given), f"hold nothing but {known}")
    wanted = endpoint.unit
    units = [] if not wanted else [unit if wanted == REQUEST_ID else str(fields[wanted][0])]
    return Batch(row.astype(matrix.dtype), units, fields)


def account(file: RouteFile, built: BuiltRoute, batch: Batch) -> list[str]:
    """Says what a route would do for one request, without asking anybody over the network.

    Args:
        file: The file of the route.
        built: The route.
        batch: The request.

    Returns:
        Lines, indented where one target asks another.
    """
    lines = [f"{built.name}: answers within {file.routes[built.name].deadline:g} s"]
    _tell(file, built, file.routes[built.name].target, batch, 1, lines)
    return lines


def _tell(file: RouteFile, built: BuiltRoute, name: str, batch: Batch, depth: int, lines: list[str]) -> None:
    spec, target = file.targets[name], built.targets.get(name)
    limit = "" if spec.timeout is None else f", at most {spec.timeout:g} s"
    then: list[str] = list(spec.asks().values())
    told = ""
    if isinstance(spec, ModelTarget) and target is not None:
        told = f"model {target.version} of this process"
    elif isinstance(spec, RemoteTarget):
        told = f"model {spec.model} at {spec.url}"
    elif isinstance(spec, ConstantTarget):
        told = f"always {spec.value:g}"
    elif isinstance(target, Canary | ContentRules):
        split = target.choose(batch)
        place = int(split.places[0])
        unit = f"unit {batch.units[0]!r}, " if isinstance(target, Canary) else ""
        told, then = f"{unit}{split.told[place][1]}", [then[place]]
    elif isinstance(spec, WeightedTarget):
        total = sum(spec.weights.values())
        told = "draws " + ", ".join(f"{one} with {weight / total:.4g}" for one, weight in spec.weights.items())
    elif isinstance(spec, CascadeTarget):
        told, then = _told_of_cascade(spec, built, batch)
    elif isinstance(spec, FallbackTarget):
        told = "the first that answers, each with what the deadline leaves, shared by those after it"
    elif isinstance(spec, PoolTarget):
        told = f"one of {len(then)}, {spec.balance}; up to {min(spec.tries, len(then))} tries"
    elif isinstance(spec, CheapestTarget):
        least = "" if spec.least_quality is None else f" with a quality of at least {spec.least_quality:g}"
        told = f"the cheapest of {len(then)}{least} that is expected in time"
    elif isinstance(spec, FastestTarget):
        told = f"the one of {len(then)} that is expected to answer first"
    elif isinstance(spec, ShadowTarget):
        told, then = f"{spec.main} answers; {spec.shadow} sees the same and is not waited for", [spec.main]
    lines.append(f"{'  ' * depth}{name}: {told}{limit}")
    for one in then:
        _tell(file, built, one, batch, depth + 1, lines)


def _told_of_cascade(spec: CascadeTarget, built: BuiltRoute, batch: Batch) -> tuple[str, list[str]]:
    small = built.targets.get(spec.small)
    both = [spec.small, spec.large]
    if not isinstance(small, LocalTarget):
        return f"{spec.large} where {spec.small} is less sure than {spec.threshold:g}", both
    try:
        sure = float(confidence_of(small.score(batch).values)[0])
    except (InvalidInput, ServiceError) as error:
        return f"{spec.small} fails on the example ({error}), so {spec.large} answers", both
    if sure >= spec.threshold:
        return f"{spec.small} is sure, {sure:.4g} of {spec.threshold:g}", [spec.small]
    return f"{spec.small} is unsure, {sure:.4g} of {spec.threshold:g}", both
