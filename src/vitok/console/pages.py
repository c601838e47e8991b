"""The console's pages: each shows what a read function found, drawn by the server and without a script."""

import functools
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from vitok import __version__
from vitok.clock import parse_time
from vitok.console import charts, reading, wording
from vitok.console.alert_reading import value_of
from vitok.console.calibration_reading import calibration, course_drawn, reliability_drawn
from vitok.console.challenger_reading import challenger, window_drawn
from vitok.console.cost_reading import costs
from vitok.console.decision_reading import ROUTES
from vitok.console.detector_reading import WISHED, detectors, stream_drawn
from vitok.console.drift_reading import SPANS, DriftAsked
from vitok.console.estimate_reading import estimates, estimates_drawn
from vitok.console.incident_reading import incident_story, incidents
from vitok.console.maturity_reading import maturity_drawn, outcomes_maturity
from vitok.console.model_reading import measured
from vitok.console.release_reading import rehearsal, step_states, told
from vitok.console.run_seen import runs_beside, runs_page
from vitok.errors import InvalidInput, MissingExtra, NotFound, StoreError, VitokError
from vitok.registry.run_reading import facts

if TYPE_CHECKING:
    from jinja2 import Environment
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

    from vitok.systems.fraud import FraudService

SECTIONS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("Overview", (("/", "Overview"),)),
    ("Decisions", (("/decisions", "Decisions"), ("/outcomes", "Outcomes"))),
    ("Features", (("/features", "Features"),)),
    ("Models", (("/models", "Versions"), ("/runs", "Runs"))),
    (
        "Watch",
        (
            ("/drift", "Drift"),
            ("/calibration", "Calibration"),
            ("/estimates", "Estimates"),
            ("/detectors", "Detectors"),
        ),
    ),
    ("Alerts", (("/alerts", "Alerts"), ("/incidents", "Incidents"))),
    ("Releases", (("/releases", "Releases"),)),
    ("Costs", (("/costs", "Costs"),)),
)
METRIC_NAMES = {
    "auc": "ROC AUC",
    "roc_auc": "ROC AUC",
    "precision": "Precision",
    "recall": "Recall",
    "positive_rate": "Fraud rate",
    "cost": "Cost a decision",
    "average_precision": "Average precision",
    "card_precision_100": "Card precision@100",
    "calibration_error": "Calibration error",
    "cost_per_decision": "Cost a decision",
    "brier": "Brier score",
    "rules_cost_per_decision": "Cost a decision, rules",
    "rules_average_precision": "Average precision, rules",
    "fraud_rate": "Fraud rate",
}
_HERE = Path(__file__).parent
_STATIC = _HERE / "static"
_MEDIA = {".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
_STATUS: Mapping[type[VitokError], tuple[int, str]] = {
    InvalidInput: (422, "That cannot be asked for"),
    NotFound: (404, "There is no such thing"),
    MissingExtra: (501, "A part is not installed"),
    StoreError: (503, "A store does not answer"),
}
# No script runs on any page, nothing comes from another address, and no page can be put into another.
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_DIGITS = 9
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_FILTERS = (
    "amount",
    "count",
    "day",
    "exact_time",
    "figure",
    "iso_day",
    "iso_time",
    "money",
    "seconds",
    "share",
    "shortened",
    "signed",
    "spoken",
    "three",
    "time",
)
_UNBROKEN = ("lasting", "seconds", "share")

Reader = Callable[[Path, "Request"], tuple[str, dict[str, Any]]]


def routes(service_or_home: "FraudService | Path | str") -> "list[BaseRoute]":
    """Returns the routes of the pages, to be mounted beside an API.

    Args:
        service_or_home: A service, whose readiness is then shown too, or the home folder alone.

    Example:
        >>> [route.path for route in routes("nowhere")][:3]
        ['/', '/decisions', '/decisions/{decision_id}']
    """
    from starlette.routing import Route

    if isinstance(service_or_home, (str, Path)):
        home, ready = Path(service_or_home), None
    else:
        home, ready = service_or_home.home, service_or_home.ready

    def overview(home: Path, _: "Request") -> tuple[str, dict[str, Any]]:
        return _overview(home, {} if ready is None else ready())

    def page(path: str, reader: Reader) -> Route:
        # A plain function, so that the server runs it in a thread and decisions need not wait for a page.
        def endpoint(request: "Request") -> "Response":
            return _answer(home, reader, request)

        return Route(path, endpoint)

    return [
        page("/", overview),
        page("/decisions", _decisions),
        page("/decisions/{decision_id}", _decision),
        page("/features", _features),
        page("/features/{view}", _view),
        page("/models", _models),
        page("/models/{version}", _model),
        page("/runs", _runs),
        page("/runs/compare", _runs_compared),
        page("/runs/{run_id}", _run),
        page("/drift", _drift),
        page("/calibration", _calibration),
        page("/estimates", _estimates),
        page("/detectors", _detectors),
        page("/outcomes", _outcomes),
        page("/alerts", _alerts),
        page("/incidents", _incidents),
        page("/incidents/{record_id}", _incident),
        page("/releases", _releases),
        page("/costs", _costs),
        Route("/console/static/{name}", _static),
    ]


def _answer(home: Path, reader: Reader, request: "Request") -> "Response":
    from starlette.responses import HTMLResponse

    try:
        template, context = reader(home, request)
        status = 200
    except VitokError as error:
        known = next((entry for kind, entry in _STATUS.items() if isinstance(error, kind)), None)
        if known is None:
            raise
        status, title = known
        template, context = "problem.html", {"title": title, "status": status, "detail": str(error)}
    active = "/" + request.url.path.split("/")[1]
    text = _environment().get_template(template).render(active=active, **context)
    return HTMLResponse(text, status, headers=_HEADERS)


def _static(request: "Request") -> "Response":
    from starlette.responses import Response

    name = request.path_params["name"]
    if name not in {path.name for path in _STATIC.iterdir()}:
        return Response("There is no such file.", 404, media_type="text/plain")
    path = _STATIC / name
    # The address carries a hash of the contents, so a browser may keep the file for good.
    headers = {"cache-control": "public, max-age=31536000, immutable", "x-content-type-options": "nosniff"}
    return Response(path.read_bytes(), media_type=_MEDIA[path.suffix], headers=headers)


@functools.lru_cache(maxsize=1)
def _environment() -> "Environment":
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtra("serve", "the console") from error

    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
    )
    for name in _FILTERS:
        environment.filters[name] = getattr(wording, name)
    # The template language has a `length` of its own.
    environment.filters["lasting"] = wording.length
    for name in _UNBROKEN:
        environment.filters[name] = _unbroken(environment.filters[name])
    environment.filters["measured"] = measured
    environment.filters["value_of"] = value_of
    environment.filters["told"] = told
    environment.filters["told_in"] = _shown
    environment.globals.update(
        charts=charts,
        interval=wording.interval,
        link=link,
        metric_names=METRIC_NAMES,
        plural=wording.plural,
        sections=SECTIONS,
        static=_address,
        told_share=reading.told_share,
        version=__version__,
    )
    return environment


def _unbroken(written: Callable[..., str]) -> Callable[..., str]:
    # A line must not end between a number and its unit.
    def found(value: Any) -> str:
        return written(value).replace(" ", "\u00a0")

    return found


def _plain(value: object) -> object:
    # What turns the direction of a line, or is no sign at all, would forge what a reader sees.
    if type(value) is str and _HIDDEN.search(value):
        return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), value)
    return value


@functools.cache
def _address(name: str) -> str:
    digest = hashlib.sha256((_STATIC / name).read_bytes()).hexdigest()[:10]
    return f"/console/static/{name}?v={digest}"


def link(path: str, given: Mapping[str, object] | None = None, **changes: object) -> str:
    """Writes an address with its query; what is None or empty is left out.

    Example:
        >>> link("/decisions", {"action": "block", "page": 2}, page=3, day=None)
        '/decisions?action=block&page=3'
    """
    values = {**(given or {}), **changes}
    query = urlencode({name: str(value) for name, value in values.items() if value not in (None, "")})
    return quote(path, safe="/") + (f"?{query}" if query else "")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return wording.count(value)
    if isinstance(value, float):
        return wording.figure(value)
    if isinstance(value, Mapping):
        if "value" in value and "lower" in value:
            ends = wording.interval(value.get("lower"), value.get("upper"))
            return wording.figure(value["value"]) + (f" ({ends})" if ends else "")
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    return wording.NOTHING if value is None else str(value)


def _number(request: "Request", name: str, default: int) -> int:
    text = request.query_params.get(name, "").strip()
    if not text:
        return default
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()):
        raise InvalidInput(name, text, "be a whole number")
    return int(text) if len(digits) <= _DIGITS else (-1 if text.startswith("-") else 10**_DIGITS)


def _overview(home: Path, parts: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    return "overview.html", {"seen": reading.overview(home), "parts": parts}


def _decisions(home: Path, request: "Request") -> tuple[str, dict[str, Any]]:
    filters = reading.DecisionFilters.read(request.query_params)
    seen = reading.decisions_page(home, filters, page=_number(request, "page", 1))
    return "decisions.html", {"seen": seen, "actions": reading.ACTIONS, "routes": ROUTES}


def _decision(home: Path, request: "Request") -> tuple[str, dict[str, Any]]:
    return "decision.html", {"seen": reading.decision_story(home, request.path_params["decision_id"])}


def _features(home: Path, _: "Request") -> tuple[str, dict[str, Any]]:
    return "features.html", {"seen": reading.features(home)}


def _view(home: Path, request: "Request") -> tuple[str, dict[str, Any]]:
    return "view.html", {"seen": reading.view_story(home, request.path_params["view"])}


def _models(home: Path, _: "Request") -> tuple[str, dict[str, Any]]:
    return "models.html", {"seen": reading.versions(home)}


def _model(home: Path, request: "Request") -> tuple[str, dict[str, Any]]:
    text = request.path_params["version"]
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        raise InvalidInput("version", text, "be the number of a version")
    return "model.html", {"seen": reading.version_story(home, int(text))}


def _runs(home: Path, request: "Request") -> tuple[str, dict[str, Any]]:
    return "runs.html", {"seen": runs_page(home, request.query_params.get("experiment", ""))}


def _runs_compared(home: Path, request: "Request") -> tuple[str, dict[str, Any]]:
    chosen = [run for run in request.query_params.getlist("run") if run]
    if len(chosen) < 2:
        raise InvalidInput("run", chosen, "be two runs or more", "Choose them on the page of runs")
    return "run.html", {"seen": runs_beside(home, chosen), "origin": facts}


def _run(home: Path, request: "Request") -> tuple[str, dict[str, Any]]:
    return "run.html", {"seen": runs_beside(home, [request.path_params["run_id"]]), "origin": facts}


def _drift(home: Path, request: "Request") -> tuple[str, dict[str, Any]]:
    given = request.query_params
    text = given.get("day", "").strip()
    try:
        on = parse_time(text) if text else None
    except InvalidInput as error:
        raise InvalidInput("day", text, "be a day such as 2018-07-04") from error
    asked = DriftAsked(
        version=given.get("version", "").strip() or None,
        days=_number(request, "days", 28),
        column=given.get("feature", "").strip() or None,
        on=on,
        against=given.get("against", "").strip() or "training",
        slice=given.get("slice", "").strip(),
        find=given.get("find", "").strip(),
        page=_number(request, "page", 1),
    )
    return "drift.html", {"seen": reading.drift(home, asked=asked), "spans": SPANS}


def _calibration(home: Path, request: "Request") -> tuple[str, dict[str, Any]]:
    seen = calibration(home, request.query_params.get("version", "").strip() or None)
    drawn: dict[str, Any] = {}
    if seen.diagram is not None and seen.watch is not None:
        windows = seen.watch.windows
        drawn = {
            "reliability": reliability_drawn(seen.diagram),
            "courses": {name: course_drawn(windows, name) for name in ("gap", "discrimination", "evidence")},
        }
    return "calibration.html", {"seen": seen, **drawn}


def _estimates(home: Path, request: "Request") -> tuple[str, dict[str, Any]]:
    given = request.query_params
    seen = estimates(home, given.get("of", "").strip() or None, given.get("metric", "").strip() or None)
    return "estimates.html", {"seen": seen, "drawn": estimates_drawn(seen.pairs, seen.metric or "")}


def _detectors(home: Path, request: "Request") -> tuple[str, dict[str, Any]]:
    seen = detectors(home, request.query_params.get("version", "").strip() or None)
    beside = {"challenger": challenger(home), "window_drawn": window_drawn}
    return "detectors.html", {"seen": seen, "drawn": stream_drawn, "wished": WISHED, **beside}


def _outcomes(home: Path, _: "Request") -> tuple[str, dict[str, Any]]:
    return "outcomes.html", {"seen": outcomes_maturity(home), "drawn": maturity_drawn}


def _incidents(home: Path, _: "Request") -> tuple[str, dict[str, Any]]:
    return "incidents.html", {"seen": incidents(home)}


def _incident(home: Path, request: "Request") -> tuple[str, dict[str, Any]]:
    return "incident.html", {"seen": incident_story(home, request.path_params["record_id"])}


def _alerts(home: Path, _: "Request") -> tuple[str, dict[str, Any]]:
    return "alerts.html", {"seen": reading.alerts(home)}


def _releases(home: Path, _: "Request") -> tuple[str, dict[str, Any]]:
    return "releases.html", {"seen": reading.releases(home), "rehearsal": rehearsal, "step_states": step_states}


def _costs(home: Path, request: "Request") -> tuple[str, dict[str, Any]]:
    return "costs.html", {"seen": costs(home, request.query_params.get("by", "").strip())}
