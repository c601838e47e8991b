"""Routes written down in a file: which targets there are, what is built of them, and under which names they answer.

The file is YAML. What it says is read strictly: a field that nothing knows, or a value of another type, is an error
that names the place, with its line, and not a default that nobody has chosen.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from vitok.errors import InvalidInput, NotFound

_EXPECTED = re.compile(r"Expected `(?P<wanted>.+?)`, got `(?P<got>.+?)`")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$")
_PLACE = re.compile(r" - at `\$(?P<path>.*)`$", re.DOTALL)
_STEP = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")
_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}

ColumnType = Literal["string", "number", "integer", "boolean"]
Balance = Literal["less-busy", "peak-ewma", "fastest", "weights", "cheapest"]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping of the file."""


class BreakerSpec(_Part, frozen=True, kw_only=True):
    """When a breaker opens: as `BreakerRules`."""

    error_share: float = 0.5
    slow_share: float = 0.8
    slow_after: float | None = None
    min_calls: int = 20
    window: float = 10.0
    cool_down: float = 30.0
    longest: float = 300.0
    probes: int = 3


class RetrySpec(_Part, frozen=True, kw_only=True):
    """How many second tries there may be: as `Budget`."""

    share: float = 0.1
    reserve: float = 10.0


class HedgeSpec(_Part, frozen=True, kw_only=True):
    """When a second call is sent: as `Hedge`."""

    quantile: float = 0.95
    share: float = 0.05
    reserve: float = 5.0
    least: int = 100


class _Target(_Part, frozen=True, kw_only=True, tag_field="kind"):
    """A target; `timeout` is the most seconds that it gets, whatever is left until the deadline."""

    timeout: float | None = None

    def asks(self) -> dict[str, str]:
        """Returns the targets that it may ask, by the place where each is named."""
        return {}


class ModelTarget(_Target, frozen=True, kw_only=True, tag="model"):
    """A model that is served here; without a version the one in force, whichever that is by then."""

    model: str
    version: str = ""
    cost: float | None = None
    quality: float | None = None


class RemoteTarget(_Target, frozen=True, kw_only=True, tag="remote"):
    """A model behind the Open Inference Protocol; `key_file` holds an API key, `ca` who vouches for the server."""

    url: str
    model: str
    version: str = ""
    input: str = "input"
    output: str = ""
    datatype: str = "FP64"
    binary: bool = True
    cost: float = 0.0
    quality: float | None = None
    headers: dict[str, str] = {}
    key_file: str = ""
    ca: str = ""
    connections: int = 64


class ConstantTarget(_Target, frozen=True, kw_only=True, tag="constant"):
    """The same answer to everything."""

    value: float


class _Several(_Target, frozen=True, kw_only=True):
    targets: list[str]

    def asks(self) -> dict[str, str]:
        """Returns the targets that it may ask."""
        return {f"targets[{k}]": name for k, name in enumerate(self.targets)}


class PoolTarget(_Several, frozen=True, kw_only=True, tag="pool"):
    """Replicas of one model."""

    balance: Balance = "less-busy"
    weights: list[float] | None = None
    tries: int = 2
    retries: RetrySpec = RetrySpec()
    hedge: HedgeSpec | None = None
    breaker: BreakerSpec = BreakerSpec()
    eject: bool = True


class FallbackTarget(_Several, frozen=True, kw_only=True, tag="fallback"):
    """One after another, the last a constant."""

    margin: float = 0.005


class FastestTarget(_Several, frozen=True, kw_only=True, tag="fastest"):
    """The one that is expected to answer first."""

    tries: int = 2
    retries: RetrySpec = RetrySpec()
    breaker: BreakerSpec = BreakerSpec()


class CheapestTarget(_Several, frozen=True, kw_only=True, tag="cheapest"):
    """The cheapest that is good enough and in time."""

    least_quality: float | None = None
    tries: int = 2
    breaker: BreakerSpec = BreakerSpec()


class WeightedTarget(_Target, frozen=True, kw_only=True, tag="weighted"):
    """Drawn for each request."""

    weights: dict[str, float]
    seed: int = 0

    def asks(self) -> dict[str, str]:
        """Returns the targets that it may ask."""
        return {f"weights.{name}": name for name in self.weights}


class CanaryTarget(_Target, frozen=True, kw_only=True, tag="canary"):
    """By the hash of the unit, each always the same."""

    champion: str
    canary: str
    share: float
    salt: str = ""

    def asks(self) -> dict[str, str]:
        """Returns the targets that it may ask."""
        return {"champion": self.champion, "canary": self.canary}


class CascadeTarget(_Target, frozen=True, kw_only=True, tag="cascade"):
    """The small model, and the large one where that is unsure."""

    small: str
    large: str
    threshold: float
    audit: float = 0.0

    def asks(self) -> dict[str, str]:
        """Returns the targets that it may ask."""
        return {"small": self.small, "large": self.large}


class ContentRule(_Part, frozen=True, kw_only=True):
    """A condition in SQL, and who answers what meets it."""

    when: str
    then: str


class ContentTarget(_Target, frozen=True, kw_only=True, tag="content"):
    """By conditions on the request."""

    rules: list[ContentRule]
    otherwise: str

    def asks(self) -> dict[str, str]:
        """Returns the targets that it may ask."""
        return {f"rules[{k}].then": rule.then for k, rule in enumerate(self.rules)} | {"otherwise": self.otherwise}


class ShadowTarget(_Target, frozen=True, kw_only=True, tag="shadow"):
    """Another sees the same and answers nobody."""

    main: str
    shadow: str
    tolerance: float = 0.0
    capacity: int = 256
    seconds: float = 10.0

    def asks(self) -> dict[str, str]:
        """Returns the targets that it may ask."""
        return {"main": self.main, "shadow": self.shadow}


TargetSpec = (
    ModelTarget
    | RemoteTarget
    | ConstantTarget
    | PoolTarget
    | FallbackTarget
    | FastestTarget
    | CheapestTarget
    | WeightedTarget
    | CanaryTarget
    | CascadeTarget
    | ContentTarget
    | ShadowTarget
)
KINDS: Mapping[str, type[_Target]] = {str(kind.__struct_config__.tag): kind for kind in TargetSpec.__args__}


class InputSpec(_Part, frozen=True, kw_only=True):
    """The matrix of rows, where no model of this process says what it is."""

    width: int
    name: str = "input"
    datatype: Literal["FP32", "FP64"] = "FP64"
    features: list[str] = []


class RouteSpec(_Part, frozen=True, kw_only=True):
    """A name that a target answers.

    `columns` are inputs of one value a row beside the matrix, which conditions and `unit` look at; `unit` is a column,
    a feature, or `request_id`.
    """

    target: str
    deadline: float = 1.0
    unit: str = ""
    columns: dict[str, ColumnType] = {}
    input: InputSpec | None = None
    output: str = "score"
    version: str = "route"


class RouteFile:
    """What a file of routes says.

    Attributes:
        path: The file; for errors, and what paths in it are relative to.
        targets: Targets by name.
        routes: Routes by name.
    """

    def __init__(
        self,
        path: Path,
        targets: Mapping[str, TargetSpec],
        routes: Mapping[str, RouteSpec],
        lines: Mapping[tuple[str, ...], int],
    ) -> None:
        self.path = path
        self.targets = targets
        self.routes = routes
        self._lines = lines

    def error(self, place: str, value: object, rule: str, fix: str = "") -> InvalidInput:
        """Makes an error that names the place and its line."""
        return InvalidInput(f"{self.path.name}, line {_line(self._lines, place)}: {place}", value, rule, fix)

    def models(self, route: str) -> list[str]:
        """Returns the models of this process that a route may ask."""
        found = [self.targets[name] for name in self.reached(self.routes[route].target)]
        return [spec.model for spec in found if isinstance(spec, ModelTarget)]

    def reached(self, name: str) -> list[str]:
        """Returns a target and all that it may ask, each once."""
        seen: dict[str, None] = {}

        def visit(one: str) -> None:
            if one not in seen:
                seen[one] = None
                for inner in self.targets[one].asks().values():
                    visit(inner)

        visit(name)
        return list(seen)

    def unused(self) -> list[str]:
        """Returns the targets that no route asks."""
        used = {name for route in self.routes.values() for name in self.reached(route.target)}
        return [name for name in self.targets if name not in used]


def read_routes(path: str | Path) -> RouteFile:
    """Reads a file of routes and checks what can be said without the models.

    Raises:
        NotFound: If it does not exist.
        InvalidInput: If it is wrong; the message names the place, its line, the value, the rule and what to do.
    """
    place = Path(path)
    try:
        text = place.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = sorted(item.name for item in place.parent.glob("*.y*ml")) if place.parent.is_dir() else []
        raise NotFound("file of routes", str(place), beside) from None
    except UnicodeDecodeError as error:
        raise InvalidInput("routes", str(place), f"be UTF-8 text; byte {error.start} is not") from None
    except OSError as error:
        raise InvalidInput("routes", str(place), f"be a readable file ({error.strerror})") from None
    return parse_routes(text, path=place)


def parse_routes(text: str, *, path: Path = Path("routes.yaml")) -> RouteFile:
    r"""Reads the text of a file of routes.

    Raises:
        InvalidInput: As `read_routes`.

    Example:
        >>> text = "targets:\n  rules: {kind: constant, value: 0.5}\nroutes:\n  risk: {target: rule}\n"
        >>> parse_routes(text)
        Traceback (most recent call last):
        vitok.errors.InvalidInput: routes.yaml, line 4: routes.risk.target: got 'rule', must name a target. Did you
        mean 'rules'?
    """
    document, lines = _loaded(text, path)
    file = RouteFile(path, {}, {}, lines)
    for key in document:
        if key not in ("targets", "routes"):
            raise file.error(str(key), document[key], "be targets or routes", _alike(str(key), ("targets", "routes")))
    given = {key: _mapping(file, key, document.get(key)) for key in ("targets", "routes")}
    targets: dict[str, TargetSpec] = {}
    for name, value in given["targets"].items():
        _kind(file, f"targets.{name}", value)
        targets[name] = _converted(file, f"targets.{name}", value, TargetSpec)
    routes = {name: _converted(file, f"routes.{name}", value, RouteSpec) for name, value in given["routes"].items()}
    if not routes:
        raise file.error("routes", document.get("routes"), "name at least one route")
    file = RouteFile(path, targets, routes, lines)
    _check_names(file)
    for name, spec in routes.items():
        if not 0 < spec.deadline < 1e6:
            raise file.error(f"routes.{name}.deadline", spec.deadline, "be seconds above 0")
        _check_time(file, name, spec)
        _check_units(file, name, spec)
    return file


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """A safe loader that reads 1e-3 as the number that it is."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
# Whole numbers were asked first, and stay such.
for _first, _found in _Loader.yaml_implicit_resolvers.items():
    _found.sort(key=lambda item: item[0].endswith(":float"))


def _loaded(text: str, path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    lines: dict[tuple[str, ...], int] = {}
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            _walk(node, (), lines, path, set())
        document = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        told = getattr(error, "problem", None) or "it cannot be read"
        shown = text.splitlines()[mark.line].strip() if mark is not None and mark.line < len(text.splitlines()) else ""
        raise InvalidInput(f"{path.name}{where}", shown, f"be YAML ({told})") from None
    except (ValueError, RecursionError) as error:
        raise InvalidInput(path.name, text[:60], f"be YAML that can be read ({error})") from None
    finally:
        loader.dispose()
    if not isinstance(document, dict):
        raise InvalidInput(path.name, document, "be a mapping with targets and routes")
    return document, lines


def _walk(node: Any, at: tuple[str, ...], lines: dict[tuple[str, ...], int], path: Path, above: set[int]) -> None:
    if id(node) in above:
        raise InvalidInput(f"{path.name}, line {node.start_mark.line + 1}", "&", "not hold itself")
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise InvalidInput(f"{path.name}, line {key.start_mark.line + 1}", name, "be a key given once")
            seen.add(name)
            lines[*at, name] = key.start_mark.line + 1
            _walk(value, (*at, name), lines, path, above | {id(node)})
    elif isinstance(node, yaml.SequenceNode):
        for k, value in enumerate(node.value):
            _walk(value, (*at, str(k)), lines, path, above | {id(node)})


def _line(lines: Mapping[tuple[str, ...], int], place: str) -> int:
    at = _steps(place)
    while at and at not in lines:
        at = at[:-1]
    return lines.get(at, 1)


def _steps(place: str) -> tuple[str, ...]:
    return tuple(step for part in place.split(".") for step in part.replace("]", "").split("[") if step)


def _mapping(file: RouteFile, place: str, value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise file.error(place, value, "be a mapping of names")
    for name in value:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise file.error(f"{place}.{name}", name, "be a name of letters, digits, - and _", "Quote it if it is one")
    return value


def _kind(file: RouteFile, place: str, value: object) -> None:
    if not isinstance(value, dict):
        raise file.error(place, value, "be a mapping that begins with kind", f"Kinds are {', '.join(KINDS)}")
    kind = value.get("kind")
    if kind not in KINDS:
        known = _alike(str(kind), KINDS)
        raise file.error(f"{place}.kind", kind, "be a kind of target", known or f"There is: {', '.join(KINDS)}")


def _converted(file: RouteFile, place: str, value: object, kind: Any) -> Any:
    try:
        return msgspec.convert(value, type=kind, strict=True)
    except msgspec.ValidationError as error:
        raise _told(file, place, value, str(error)) from None


def _told(file: RouteFile, place: str, value: Any, text: str) -> InvalidInput:
    # What msgspec says, as an error that shows the value and what would be right.
    path = ""
    if match := _PLACE.search(text):
        path, text = match["path"], text[: match.start()]
    found = value
    for name, index in _STEP.findall(path):
        step: Any = name or (int(index) if index.isdigit() else None)
        try:
            found = found[step]
        except (LookupError, TypeError):
            break
    where = place + path.replace("[...]", "")
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", text):
        known = _fields_of(value, path)
        rule, fix = "be a field that is known here", _alike(match[1], known) or f"There is: {', '.join(known)}"
        return file.error(f"{where}.{match[1]}", found.get(match[1]) if isinstance(found, dict) else None, rule, fix)
    if match := re.fullmatch(r"Object missing required field `(.*)`", text):
        return file.error(f"{where}.{match[1]}", None, "be given")
    if match := _EXPECTED.fullmatch(text):
        wanted = " or ".join(_WORDS.get(word.strip(), word.strip()) for word in match["wanted"].split("|"))
        return file.error(where, found, f"be {wanted}")
    return file.error(where, found, f"be one of those that there are: {text}")


def _fields_of(value: Any, path: str) -> tuple[str, ...]:
    kind: Any = KINDS[value["kind"]] if isinstance(value, dict) and value.get("kind") in KINDS else RouteSpec
    inner = {"breaker": BreakerSpec, "retries": RetrySpec, "hedge": HedgeSpec, "input": InputSpec, "rules": ContentRule}
    for name, _ in _STEP.findall(path):
        kind = inner.get(name, kind)
    return tuple(kind.__struct_fields__)


def _alike(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else ""


def _check_names(file: RouteFile) -> None:
    for place, name in _named(file):
        if name not in file.targets:
            fix = _alike(name, file.targets) or f"There is: {', '.join(file.targets) or 'nothing yet'}"
            raise file.error(place, name, "name a target", fix)
    state: dict[str, bool] = {}

    def visit(name: str, way: tuple[str, ...]) -> None:
        if state.get(name) is False:
            circle = " -> ".join((*way[way.index(name) :], name))
            raise file.error(f"targets.{name}", circle, "not ask itself")
        if name not in state:
            state[name] = False
            for inner in file.targets[name].asks().values():
                visit(inner, (*way, name))
            state[name] = True

    for name in file.targets:
        visit(name, ())
    for name, spec in file.targets.items():
        asked = list(spec.asks().values())
        if isinstance(spec, FallbackTarget) and not (asked and isinstance(file.targets[asked[-1]], ConstantTarget)):
            fix = "Else there may be no answer at all"
            raise file.error(f"targets.{name}.targets", spec.targets, "end in a target of the kind constant", fix)
        if isinstance(spec, PoolTarget) and (spec.weights is None) != (spec.balance != "weights"):
            raise file.error(
                f"targets.{name}.weights", spec.weights, "be given where balance is weights, and only then"
            )
        if spec.timeout is not None and not 0 < spec.timeout < 1e6:
            raise file.error(f"targets.{name}.timeout", spec.timeout, "be seconds above 0")


def _named(file: RouteFile) -> Iterator[tuple[str, str]]:
    for name, spec in file.targets.items():
        for place, asked in spec.asks().items():
            yield f"targets.{name}.{place}", asked
    for name, route in file.routes.items():
        yield f"routes.{name}.target", route.target


def longest(file: RouteFile, name: str) -> tuple[float, str]:
    """Returns the seconds that the timeouts of a target add up to, and how.

    A target without a timeout takes what the deadline leaves it, and counts as nothing.
    """
    spec = file.targets[name]
    inner = [longest(file, asked) for asked in spec.asks().values()]
    took, how = 0.0, ""
    if isinstance(spec, FallbackTarget):
        took, how = _added([*inner, (spec.margin if any(took for took, _ in inner) else 0.0, "margin")])
    elif isinstance(spec, CascadeTarget):
        took, how = _added(inner)
    elif isinstance(spec, ShadowTarget):
        took, how = inner[0]
    elif isinstance(spec, PoolTarget | FastestTarget | CheapestTarget):
        slowest = sorted(inner, reverse=True)[: min(spec.tries, len(inner))]
        took, how = _added(slowest)
    elif inner:
        took, how = max(inner)
    if spec.timeout is not None and (not took or spec.timeout < took):
        return spec.timeout, f"{name} {spec.timeout:g}"
    return took, how


def _added(parts: Sequence[tuple[float, str]]) -> tuple[float, str]:
    return sum(took for took, _ in parts), " + ".join(
        how if how != "margin" else f"margin {took:g}" for took, how in parts if took
    )


def _check_time(file: RouteFile, name: str, spec: RouteSpec) -> None:
    took, how = longest(file, spec.target)
    if took > spec.deadline * (1 + 1e-9):
        fix = "Shorten a timeout, ask fewer targets one after another, or allow more time"
        rule = f"be at least what the timeouts add up to: {how} = {took:g} s"
        raise file.error(f"routes.{name}.deadline", spec.deadline, rule, fix)


def _check_units(file: RouteFile, name: str, spec: RouteSpec) -> None:
    canaries = [one for one in file.reached(spec.target) if isinstance(file.targets[one], CanaryTarget)]
    if canaries and not spec.unit:
        fix = "Name a column, a feature, or request_id"
        raise file.error(f"routes.{name}.unit", spec.unit, f"say what the canary {canaries[0]} draws by", fix)
