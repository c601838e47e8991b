"""The features as pages show them: all of them at a glance, and one view in full."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from vitok.clock import Clock, SystemClock
from vitok.console import stores
from vitok.console.definition_files import load_definitions
from vitok.console.feature_reading import LIVE, ModelUse, Moment, Survey, survey
from vitok.console.lineage_drawing import Picture, draw
from vitok.console.wording import length, spoken
from vitok.errors import NotFound
from vitok.features.aggregations import Window
from vitok.features.catalogue import Unused
from vitok.features.described import Feature, Function, SetVersion, features_of
from vitok.features.differences import DefinitionDiff, diff_views
from vitok.features.freshness import Freshness
from vitok.features.lineage import Lineage, Node
from vitok.features.views import AnyView, Embedding, View
from vitok.monitoring import ReferenceProfile
from vitok.systems.fraud.features import CALENDAR, FEATURES
from vitok.systems.fraud.messages import SYSTEM

_MOST_DRAWN = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSeen:
    """One feature, as it is declared, as the reference has it, and as it was served.

    Attributes:
        name: Its name.
        meaning: What it is, in words.
        tail: How the end of its window moves, or empty.
        median: Median of the reference; NaN where it is not known.
        reference_nulls: Share of the reference without a value; NaN where it is not known.
        served_nulls: The same of the last decisions.
        users: Model versions that use it as it is declared now.
        watched: Whether drift is looked for in it.
    """

    name: str
    meaning: str
    tail: str
    median: float
    reference_nulls: float
    served_nulls: float
    users: tuple[ModelUse, ...]
    watched: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewSeen:
    """A view at a glance.

    Attributes:
        view: The definition.
        title: Its name in words.
        entity: Whom its features are about, with the key.
        source: Where its events come from.
        freshness: How fresh it is.
        nulls: Largest share without a value among its features, of the last decisions; NaN where it is not known.
        nulls_of: The feature that has it.
        users: Model versions that use it.
    """

    view: AnyView
    title: str
    entity: str
    source: str
    freshness: Freshness
    nulls: float
    nulls_of: str
    users: tuple[ModelUse, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesSeen:
    """The declared features and who uses them.

    Attributes:
        features: The definitions.
        views: Its views.
        request: Features that come with the request.
        functions: Features that are computed from others when asked.
        uses: Every model version, the newest first.
        unused: Features that no model version uses.
        moment: The moment that ages are counted from.
        served: How many decisions the shares without a value are of.
        reference: Version whose reference the medians are of, or None.
        picture: What comes from what.
    """

    features: SetVersion
    views: tuple[ViewSeen, ...]
    request: tuple[FeatureSeen, ...]
    functions: tuple[FeatureSeen, ...]
    uses: tuple[ModelUse, ...]
    unused: tuple[Unused, ...]
    moment: Moment
    served: int
    reference: str | None
    picture: Picture

    @property
    def count(self) -> int:
        """How many features the model sees."""
        return len(self.features.names)

    @property
    def stale(self) -> int:
        """How many views break their promise."""
        return sum(item.freshness.state == "stale" for item in self.views)

    def __str__(self) -> str:
        lines = [f"{self.count} features, definitions {self.features.version}"]
        lines += [f"  {item.freshness}" for item in self.views]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VersionOfView:
    """A version of a view that is or was declared.

    Attributes:
        version: Content hash.
        declared: Whether it is the one of now.
        users: Model versions that pin it.
        diff: What differs between it and the one of now; None for that itself.
    """

    version: str
    declared: bool
    users: tuple[ModelUse, ...]
    diff: DefinitionDiff | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewStory:
    """One view in full.

    Attributes:
        seen: The view at a glance.
        features: Its features.
        rule: What holds for all of them, in words, or empty.
        versions: Its versions, the declared one first.
        moment: The moment that ages are counted from.
        served: How many decisions the shares without a value are of.
        reference: Version whose reference the medians are of, or None.
        picture: What its features are made of, and what comes of them.
    """

    seen: ViewSeen
    features: tuple[FeatureSeen, ...]
    rule: str
    versions: tuple[VersionOfView, ...]
    moment: Moment
    served: int
    reference: str | None
    picture: Picture

    def __str__(self) -> str:
        lines = [str(self.seen.freshness)]
        lines += [f"  {feature.name:<28} {feature.meaning}" for feature in self.features]
        return "\n".join(lines)


def features(home: Path, *, clock: Clock | None = None) -> FeaturesSeen:
    """Reads the declared features, who uses them and how fresh they are."""
    sets = load_definitions()
    found = survey(home, sets, now=(clock or SystemClock()).now())
    reference, profile = _reference(home)
    declared = sets[0]
    return FeaturesSeen(
        features=declared,
        views=tuple(_view(found, view) for view in declared.views),
        request=tuple(_request(found, name, profile) for name in declared.request),
        functions=tuple(_function(found, item, profile) for item in declared.on_demand),
        uses=found.uses,
        unused=found.unused() if found.uses else (),
        moment=found.moment,
        served=found.served.n if found.served else 0,
        reference=reference,
        picture=draw(
            _drawn(found).by_view(),
            title="Lineage: sources, views, model versions, and where they decide",
            link=_Links(declared),
            tones=_tones(found.uses),
        ),
    )


def view_story(home: Path, name: str, *, clock: Clock | None = None) -> ViewStory:
    """Reads everything about one view.

    Raises:
        NotFound: If there is no such view.
    """
    sets = load_definitions()
    declared = sets[0]
    if name not in {view.name for view in declared.views}:
        raise NotFound("view", name, [view.name for view in declared.views])
    found = survey(home, sets, now=(clock or SystemClock()).now())
    reference, profile = _reference(home)
    view = declared.view(name)
    graph = _drawn(found)
    mine = [node for node in graph.nodes if node.kind == "feature" and node.group == name]
    return ViewStory(
        seen=_view(found, view),
        features=tuple(_feature(found, one, profile) for one in features_of(view)),
        rule=_rule(view),
        versions=_versions(found, view),
        moment=found.moment,
        served=found.served.n if found.served else 0,
        reference=reference,
        picture=draw(graph.around(*mine), title=f"Lineage of {name}", link=_Links(declared), tones=_tones(found.uses)),
    )


def _reference(home: Path) -> tuple[str | None, ReferenceProfile | None]:
    state = stores.state(home)
    version = None if state.production is None else state.version(state.production)
    profile = None if version is None else stores.profile(home, version)
    return (version.name if version is not None and profile is not None else None), profile


def _view(found: Survey, view: AnyView) -> ViewSeen:
    shares = [(_served(found, name), name) for name in view.feature_names]
    known = [pair for pair in shares if not math.isnan(pair[0])]
    nulls, nulls_of = max(known, default=(math.nan, ""))
    if isinstance(view, Embedding):
        source = f"index {view.reference}"
    else:
        source = f"{view.source.name}, by {spoken(view.source.event_time)}"
    return ViewSeen(
        view=view,
        title=spoken(view.name).capitalize(),
        entity=f"{view.entity.name} ({', '.join(view.entity.keys)})",
        source=source,
        freshness=next(item for item in found.freshness if item.view == view.name),
        nulls=nulls,
        nulls_of=nulls_of,
        users=found.users(view.name),
    )


def _rule(view: AnyView) -> str:
    if not isinstance(view, View):
        return ""
    if view.include_current:
        return "The event that asks is part of its own windows."
    return "The event that asks is not part of its own windows."


def _served(found: Survey, name: str) -> float:
    return math.nan if found.served is None else found.served.null_share(name)


def _feature(found: Survey, one: Feature, profile: ReferenceProfile | None) -> FeatureSeen:
    window = one.recipe.get("window")
    tail = ""
    if window:
        tail = "exact" if window[1] == 1 else f"in steps of {length(Window(*window).hop)}"
    meaning = one.meaning[:1].upper() + one.meaning[1:]
    return _seen(found, one.name, meaning, tail, found.users_of(one), profile)


def _request(found: Survey, name: str, profile: ReferenceProfile | None) -> FeatureSeen:
    return _seen(found, name, "As it comes with the request", "", _using(found.uses, name), profile)


def _function(found: Survey, item: Function, profile: ReferenceProfile | None) -> FeatureSeen:
    # The functions of the page are at hand; of those in a package only the hash is.
    own = next((one.function.__doc__ or "" for one in FEATURES.on_demand if one.name == item.name), "")
    text = own.strip().partition("\n")[0]
    meaning = f"{text} From {', '.join(spoken(name) for name in item.inputs)}.".strip()
    return _seen(found, item.name, meaning, "", _using(found.uses, item.name), profile)


def _using(uses: Iterable[ModelUse], name: str) -> tuple[ModelUse, ...]:
    return tuple(item for item in uses if name in item.use.features.used)


def _seen(
    found: Survey,
    name: str,
    meaning: str,
    tail: str,
    users: tuple[ModelUse, ...],
    profile: ReferenceProfile | None,
) -> FeatureSeen:
    median, nulls = math.nan, math.nan
    if profile is not None and name in profile.columns:
        at = profile.columns.index(name)
        counts = profile.counts[at]
        nulls = int(counts[0]) / profile.n
        valued = counts[1:].cumsum()
        if valued[-1]:
            median = profile.edges[at].centers[1 + int((valued >= valued[-1] / 2).argmax())]
    return FeatureSeen(
        name=name,
        meaning=meaning,
        tail=tail,
        median=median,
        reference_nulls=nulls,
        served_nulls=_served(found, name),
        users=users,
        watched=name not in CALENDAR,
    )


def _versions(found: Survey, view: AnyView) -> tuple[VersionOfView, ...]:
    known = {view.version: view}
    for features_then, _ in found.past:
        if view.name in features_then.pins:
            known.setdefault(features_then.pins[view.name], features_then.view(view.name))
    return tuple(
        VersionOfView(
            version=version,
            declared=version == view.version,
            users=tuple(item for item in found.uses if item.use.pins.get(view.name) == version),
            diff=None if version == view.version else diff_views(then, view),
        )
        for version, then in known.items()
    )


def _drawn(found: Survey) -> Lineage:
    """The lineage without old model versions, so that the picture can be read."""
    shown = [item.name for item in found.uses if item.live]
    shown += [item.name for item in found.uses if not item.live][: _MOST_DRAWN - len(shown)]
    hidden = {node for node in found.lineage.nodes if node.kind == "model" and node.name not in shown}
    left = Lineage(
        nodes=tuple(node for node in found.lineage.nodes if node not in hidden),
        edges=tuple(edge for edge in found.lineage.edges if not {edge.start, edge.end} & hidden),
    )
    joined = {node for edge in left.edges for node in (edge.start, edge.end)}
    return Lineage(nodes=tuple(node for node in left.nodes if node in joined), edges=left.edges)


class _Links:
    def __init__(self, declared: SetVersion) -> None:
        self._views = {view.name for view in declared.views}

    def __call__(self, node: Node) -> str:
        if node.kind == "view":
            return f"/features/{node.name}" if node.name in self._views else ""
        if node.kind == "feature":
            return f"/features/{node.group}#{node.name}" if node.group in self._views else ""
        if node.kind == "model" and node.name.startswith(f"{SYSTEM}/"):
            return f"/models/{node.name.rpartition('/')[2]}"
        return {"log": "/decisions", "experiment": "/releases"}.get(node.kind, "")


def _tones(uses: Sequence[ModelUse]) -> dict[str, str]:
    return {item.name: f"model {item.role.lower()}" for item in uses if item.role in LIVE}
