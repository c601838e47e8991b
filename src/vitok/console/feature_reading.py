"""What is known of features: which exist, who owns and uses them, how fresh they are, and what comes of them."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vitok.clock import DAY
from vitok.console import stores
from vitok.console.newest import latest_rows
from vitok.decisions.segments import segments
from vitok.engines import open_rows
from vitok.errors import InvalidInput, NotFound
from vitok.features.catalogue import Unused, unused
from vitok.features.described import Feature, SetVersion, Use
from vitok.features.differences import DefinitionDiff, diff_sets, diff_views
from vitok.features.freshness import Freshness, Newest, freshness, newest_in
from vitok.features.lineage import Lineage
from vitok.features.views import AnyView
from vitok.registry import ModelState
from vitok.systems.fraud.features import FEATURES, LABELS, TRANSACTIONS
from vitok.systems.fraud.messages import SYSTEM

# The rows at the end of a log that tell of the present.
LATEST = 50_000
LIVE = ("Production", "canary")
_REPLAYED = 30 * DAY
# The logs of the fraud system are what its sources are served from, and its requests are rows of one of them.
_LOG_OF = {TRANSACTIONS.name: "decisions", LABELS.name: "outcomes"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelUse:
    """A model version that uses features.

    Attributes:
        name: Name and number, such as `"fraud/3"`.
        role: `"Production"`, `"canary"`, `"unreleased"`, its stage, or "" where the registry does not know it.
        use: The definitions it was made with.
        current: Whether they are those that are declared now.
    """

    name: str
    role: str
    use: Use
    current: bool

    @property
    def live(self) -> bool:
        """Whether it answers requests now."""
        return self.role in LIVE

    def __str__(self) -> str:
        return f"{self.name} ({self.role})" if self.role else self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
    """The moment that ages are counted from.

    Attributes:
        now: Microseconds.
        reason: Why it is not the present, in words; "" where it is.
    """

    now: int
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """What was served in the last day of the log, at most `LATEST` decisions.

    Attributes:
        n: Decisions.
        nulls: How many of them had no value, by feature; only those that the log holds.
    """

    n: int
    nulls: Mapping[str, int]

    def null_share(self, name: str) -> float:
        """Returns the share of the decisions without a value of a feature; NaN where it was not served."""
        return self.nulls[name] / self.n if name in self.nulls and self.n else math.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """Everything that is known of some definitions in a home.

    Attributes:
        sets: The definitions as they are declared now.
        uses: Model versions and what they use, the newest first.
        newest: Latest fact by source or view.
        moment: The moment that ages are counted from.
        freshness: How fresh each view is.
        served: What was served last; None where nothing was.
        lineage: What comes from what.
        past: Earlier definitions that models or the catalogue know: (set, where it was found).
    """

    sets: tuple[SetVersion, ...]
    uses: tuple[ModelUse, ...]
    newest: Mapping[str, Newest]
    moment: Moment
    freshness: tuple[Freshness, ...]
    served: Served | None
    lineage: Lineage
    past: tuple[tuple[SetVersion, str], ...]

    def users(self, view: str) -> tuple[ModelUse, ...]:
        """Returns the model versions that use a view of that name, in whatever version."""
        return tuple(item for item in self.uses if view in item.use.pins)

    def users_of(self, feature: Feature) -> tuple[ModelUse, ...]:
        """Returns the model versions that use a feature as it is declared now."""
        return tuple(
            item
            for item in self.uses
            if feature.name in item.use.features.used
            and item.use.features.fingerprints[feature.name] == feature.fingerprint
        )

    def view(self, name: str) -> AnyView:
        """Returns a view that is declared now.

        Raises:
            NotFound: If there is none; the message lists what there is.
            InvalidInput: If several sets have different ones of that name.
        """
        found = [(features.name, view) for features in self.sets for view in features.views if view.name == name]
        if not found:
            raise NotFound("view", name, dict.fromkeys(view.name for item in self.sets for view in item.views))
        if len({view.version for _, view in found}) > 1:
            listed = ", ".join(set_name for set_name, _ in found)
            raise InvalidInput("view", name, f"be of one set; {listed} each have another", "Name a set: FILE:NAME.")
        return found[0][1]

    def unused(self, *, live: bool = False) -> tuple[Unused, ...]:
        """Names the features that no model version uses.

        Args:
            live: Whether only versions that answer requests now count.
        """
        uses = [item.use for item in self.uses if item.live or not live]
        return tuple(dict.fromkeys(item for features in self.sets for item in unused(features, uses)))

    @property
    def stale(self) -> tuple[Freshness, ...]:
        """The views that break their promise."""
        return tuple(item for item in self.freshness if item.state == "stale")


def survey(
    home: Path,
    sets: Sequence[SetVersion],
    *,
    now: int,
    at: int | None = None,
    store: str | None = None,
) -> Survey:
    """Reads what a home knows of some definitions.

    Args:
        home: Folder of everything vitok writes; it need not exist.
        sets: The definitions.
        now: The present, in microseconds.
        at: The moment that ages are counted from; by default the present, or the newest record of a log that is a
            replay of the past.
        store: Address of an online store whose runs say how fresh the views are.

    Raises:
        StoreError: If a store does not answer.
    """
    models = _models(home, sets)
    newest = _newest(home)
    if store is not None:
        views = [view for features in sets for view in features.views]
        newest = {**newest, **newest_in(open_rows(store), views)}
    moment = Moment(now=at, reason="as asked for") if at is not None else _moment(home, newest, now)
    catalogue = stores.catalogue(home)
    past = [(item.use.features, item.name) for item in models]
    past += [(known, "the catalogue") for item in catalogue.sets() for known in catalogue.set_versions(item.name)]
    names = {name for features in sets for name in features.computed}
    views_once = {view.name + view.version: view for features in sets for view in features.views}
    return Survey(
        sets=tuple(sets),
        uses=models,
        newest=newest,
        moment=moment,
        freshness=freshness(views_once.values(), newest, now=moment.now),
        served=_served(home, names),
        lineage=_lineage(home, sets, models),
        past=tuple(past),
    )


def _models(home: Path, sets: Sequence[SetVersion]) -> tuple[ModelUse, ...]:
    declared = {features.version for features in sets}
    found: dict[str, ModelUse] = {}
    with stores.ledger(home) as ledger:
        states = [] if ledger is None else [ledger.state(model) for model in ledger.models()]
    for state in states:
        for version in reversed(state.versions):
            document = stores.document(home, version, "features.json")
            if document is not None:
                use = Use(model=version.name, features=SetVersion.read(document, version.model))
                role = _role(state, version.version)
                current = use.features.version in declared
                found[version.name] = ModelUse(name=version.name, role=role, use=use, current=current)
    for use in stores.catalogue(home).models():
        current = use.features.version in declared
        found.setdefault(use.model, ModelUse(name=use.model, role="", use=use, current=current))
    return tuple(found.values())


def _role(state: ModelState, number: int) -> str:
    if number == state.production:
        return "Production"
    if number == state.canary:
        return "canary"
    stage = state.version(number).stage
    return "unreleased" if stage == "None" else stage


def _lineage(home: Path, sets: Sequence[SetVersion], models: Sequence[ModelUse]) -> Lineage:
    logs: dict[str, list[str]] = {}
    experiments: dict[str, list[str]] = {}
    with stores.ledger(home) as ledger:
        if ledger is not None:
            known = {item.name for item in models}
            for model in ledger.models():
                decided = {
                    f"{model}/{entry.version}"
                    for entry in ledger.history(model)
                    if entry.kind == "canary_started" or (entry.kind == "promoted" and entry.stage_to == "Production")
                }
                served = [item.name for item in models if item.name in decided]
                if served:
                    logs[f"{model} decisions"] = served
                state = ledger.state(model)
                canary, champion = (f"{model}/{number}" for number in (state.canary, state.production))
                if canary in known:
                    pair = [canary] + ([champion] if champion in known else [])
                    experiments[f"canary {canary} beside {champion if champion in known else 'rules'}"] = pair
    # Only the fraud system's requests are known by name.
    request = TRANSACTIONS.name if any(item.name == SYSTEM for item in sets) else ""
    return Lineage.of(sets, uses=[item.use for item in models], logs=logs, experiments=experiments, request=request)


def _newest(home: Path) -> dict[str, Newest]:
    out = {}
    for source, name in _LOG_OF.items():
        found = _clocks(home / "log" / name, _sizes(home / "log" / name))
        if found is not None:
            out[source] = found
    return out


def _sizes(folder: Path) -> tuple[tuple[str, int], ...]:
    # The sizes stand for the contents: a log only grows.
    out = []
    for segment in segments(folder):
        try:
            out.append((str(segment.path), segment.path.stat().st_size))
        except FileNotFoundError:
            # It was sealed since the folder was listed.
            out.append((str(segment.path), -1))
    return tuple(out)


@functools.lru_cache(maxsize=8)
def _clocks(folder: Path, sizes: tuple[tuple[str, int], ...]) -> Newest | None:
    del sizes
    rows = latest_rows(folder, ("event_time", "ingest_time"), most=LATEST)
    if rows is None:
        return None
    event_time, arrival = (
        stores.microseconds(rows[name].drop_nulls().dt.cast_time_unit("us").max())  # type: ignore[arg-type]
        for name in ("event_time", "ingest_time")
    )
    return Newest(event_time=event_time, arrival=arrival)


def _moment(home: Path, newest: Mapping[str, Newest], now: int) -> Moment:
    arrivals = [item.arrival for item in newest.values() if item.arrival is not None]
    times = [moment for name in _LOG_OF.values() for moment in _written(home / "log" / name)]
    if arrivals and times and max(times) - max(arrivals) > _REPLAYED:
        # Written long after what it tells of had arrived: the clock of that log was another one.
        latest = max(max(arrivals), *(item.event_time or 0 for item in newest.values()))
        return Moment(now=latest, reason="the log is a replay of the past, so ages are as of its newest record")
    return Moment(now=now)


def _written(folder: Path) -> list[int]:
    # When the newest segment was written to; nothing where there is none, or it has just gone.
    try:
        return [segment.path.stat().st_mtime_ns // 1000 for segment in segments(folder)[-1:]]
    except FileNotFoundError:
        return []


def _served(home: Path, names: Iterable[str]) -> Served | None:
    folder = home / "log" / "decisions"
    return _served_of(folder, tuple(sorted(names)), _sizes(folder))


@functools.lru_cache(maxsize=4)
def _served_of(folder: Path, names: tuple[str, ...], sizes: tuple[tuple[str, int], ...]) -> Served | None:
    import polars as pl

    del sizes
    rows = latest_rows(folder, ("event_time", *(f"f_{name}" for name in names)), most=LATEST)
    if rows is None:
        return None
    there = [name for name in names if f"f_{name}" in rows.columns]
    if not there:
        return None
    rows = rows.filter(pl.col("event_time") > pl.col("event_time").max() - pl.duration(days=1))
    counted = rows.select(pl.col(f"f_{name}").cast(pl.Float64).fill_nan(None).null_count() for name in there)
    return Served(n=rows.height, nulls=dict(zip(there, counted.row(0), strict=True)))


# What stands downstream, for a change of a contract


def contract_impact(home: Path, sets: Sequence[SetVersion] | None = None) -> dict[str, tuple[str, ...]]:
    """Says what stands on each column of each source: features, models that answer now, canaries, logs.

    Args:
        home: Folder of everything vitok writes.
        sets: The definitions; by default the fraud system's.

    Returns:
        `"source.column"` to names such as `"feature customer_sum_1h"` and `"model fraud/3 (Production)"`, as
        `vitok.contracts.diff` takes them.
    """
    declared = (SetVersion.of(FEATURES, SYSTEM),) if sets is None else tuple(sets)
    # A version that answers no request is not broken by data that is yet to come; one of no known stage may be.
    models = [item for item in _models(home, declared) if item.live or not item.role]
    named = {f"model {item.name}": f"model {item}" for item in models}
    graph = _lineage(home, declared, models)
    out = {}
    for node in graph.nodes:
        if node.kind == "column":
            column = node.name.removeprefix(f"{node.group}.")
            out[node.name] = tuple(named.get(name, name) for name in graph.impact(node.group, [column]))
    return out


# Earlier definitions


def find_definition(seen: Survey, name: str, wanted: str) -> tuple[AnyView | SetVersion, str]:
    """Finds a version of a view or set: by `declared`, by a model that uses it, or by its content hash.

    Args:
        seen: What is known.
        name: The view, or the set.
        wanted: `"declared"`, a model version such as `"fraud/2"`, or four or more digits of a content hash.

    Returns:
        The definition and its content hash.

    Raises:
        NotFound: If there is none.
        InvalidInput: If the digits fit several.
    """
    known: dict[str, tuple[AnyView | SetVersion, list[str]]] = {}
    groups = [(features, "declared") for features in seen.sets] + list(seen.past)
    for features, where in groups:
        items: list[tuple[str, AnyView | SetVersion, str]] = [
            (view.name, view, features.pins[view.name]) for view in features.views
        ]
        items.append((features.name, features, features.version))
        for item_name, item, version in items:
            if item_name == name:
                known.setdefault(version, (item, []))[1].append(where)
    if not known:
        names = dict.fromkeys(view.name for features, _ in groups for view in features.views)
        raise NotFound("view or feature set", name, [*names, *dict.fromkeys(features.name for features, _ in groups)])
    fitting = [
        version
        for version, (_, where) in known.items()
        if wanted in where or (len(wanted) >= 4 and version.startswith(wanted))
    ]
    if len(fitting) > 1:
        raise InvalidInput(f"version of {name}", wanted, f"fit one version; it fits {', '.join(fitting)}")
    if not fitting:
        told = [f"{version} ({', '.join(dict.fromkeys(where))})" for version, (_, where) in known.items()]
        raise NotFound(f"version of {name}", wanted, told)
    return known[fitting[0]][0], fitting[0]


def definition_diff(seen: Survey, name: str, old: str, new: str) -> DefinitionDiff:
    """Compares two versions of a view or set; arguments as of `find_definition`."""
    (one, before), (two, after) = find_definition(seen, name, old), find_definition(seen, name, new)
    if isinstance(one, SetVersion) and isinstance(two, SetVersion):
        found = diff_sets(one, two)
    elif isinstance(one, SetVersion) or isinstance(two, SetVersion):
        raise InvalidInput("name", name, "be of a view or of a feature set, not of both")
    else:
        found = diff_views(one, two)
    return dataclasses.replace(found, old=before, new=after)
