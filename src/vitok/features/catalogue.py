"""The catalogue: which definitions exist and existed, who owns them, and which model versions were made with them.

It is a journal of facts that only grows; what stands in it is replayed into memory, and followed as others add to it.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vitok.clock import Clock, SystemClock, isoformat
from vitok.errors import Conflict, InvalidInput, NotFound
from vitok.features.definitions import FeatureSet
from vitok.features.described import SetVersion, Use, view_of, words_of
from vitok.features.differences import DefinitionDiff, diff_sets, diff_views
from vitok.features.journal import Journal
from vitok.features.views import AnyView

FILE = "catalogue.jsonl"
_LEAST_DIGITS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewVersion:
    """One version of a view: what computes its features and what it says of itself.

    Attributes:
        number: 1, 2, ... in the order in which versions of this view were first registered.
        version: Content hash of what gives the features their values; two versions that differ in words alone, such
            as the owner, share it.
        registered: When it was first registered, in microseconds.
        actor: Who registered it.
        view: The definition.
    """

    number: int
    version: str
    registered: int
    actor: str
    view: AnyView

    @property
    def name(self) -> str:
        """Name of the view."""
        return self.view.name

    def __str__(self) -> str:
        owner = f", owner {self.view.owner}" if self.view.owner else ""
        return (
            f"{self.name} {self.version} (number {self.number}, {len(self.view.feature_names)} features{owner}, "
            f"registered {isoformat(self.registered)})"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unused:
    """A feature that no model uses.

    Attributes:
        name: The feature.
        view: The view it is of; "" for one of the request or a function.
        owner: Who answers for the view.
        formerly: Models that use another definition under the same name.
    """

    name: str
    view: str
    owner: str
    formerly: tuple[str, ...] = ()

    def __str__(self) -> str:
        former = f"; other definitions of it serve {', '.join(self.formerly)}" if self.formerly else ""
        return f"{self.name} (view {self.view or 'none'}, owner {self.owner or 'nobody'}){former}"


def unused(features: SetVersion, uses: Iterable[Use]) -> tuple[Unused, ...]:
    """Names the features of a set that no model uses; a feature that a used function takes is used.

    Features are compared by what gives them their values, so a change elsewhere in a view does no harm.

    Args:
        features: The set.
        uses: The model versions that count.
    """
    found = list(uses)
    keys = {(name, use.features.fingerprints[name]) for use in found for name in use.features.used}
    out = []
    for name in features.computed:
        if (name, features.fingerprints[name]) in keys:
            continue
        view = next((view for view in features.views if name in view.feature_names), None)
        out.append(
            Unused(
                name=name,
                view=view.name if view else "",
                owner=view.owner if view else "",
                formerly=tuple(use.model for use in found if name in use.features.used),
            )
        )
    return tuple(out)


class Catalogue:
    """The definitions and uses in one folder.

    Args:
        folder: Where the file is; made by the first registration, not before.
        clock: Tells when something is registered.

    Example:
        >>> import tempfile
        >>> from vitok.clock import EventClock
        >>> from vitok.features import Count, Entity, FeatureSet, Source, View
        >>> card, paid = Entity("card", "card_id"), Source("payments", "payment_id")
        >>> view = View(name="card", entity=card, source=paid, aggregations=(Count(("1h",)),), owner="risk team")
        >>> folder = tempfile.TemporaryDirectory()
        >>> catalogue = Catalogue(folder.name, clock=EventClock(0))
        >>> _ = catalogue.register(FeatureSet(views=(view,)), name="fraud")
        >>> _ = catalogue.uses(model="fraud/1", features=FeatureSet(views=(view,)))
        >>> print(catalogue.view("card"))
        card cb4d5cb01a46 (number 1, 1 features, owner risk team, registered 1970-01-01T00:00:00Z)
        >>> catalogue.users("card_count_1h"), catalogue.pins("fraud/1"), catalogue.owners()
        (('fraud/1',), {'card': 'cb4d5cb01a46'}, {'risk team': ('card',)})
        >>> folder.cleanup()
    """

    def __init__(self, folder: str | Path, *, clock: Clock | None = None) -> None:
        self.folder = Path(folder)
        self.clock = clock or SystemClock()
        self._journal = Journal(self.folder / FILE)
        self._guard = threading.RLock()
        self._views: dict[str, list[ViewVersion]] = {}
        self._newest: dict[str, ViewVersion] = {}
        self._sets: dict[str, list[SetVersion]] = {}
        self._uses: dict[str, Use] = {}

    # Writing

    def register(self, features: FeatureSet, *, name: str = "features", actor: str = "") -> SetVersion:
        """Registers a feature set and its views; what is known already adds nothing.

        Args:
            features: The definitions as they are now.
            name: What the set is called, such as the name of the model.
            actor: Who registers it.

        Returns:
            The set as it was registered.

        Raises:
            StoreError: If the catalogue cannot be written, or is damaged; nothing was added then.
            Conflict: If other processes held it all the time.
        """
        if not name or not name.isprintable():
            raise InvalidInput("name", name, "be a short printable name")
        with self._writing() as lines:
            self._add_set(features, name, actor, lines)
        return self.set(name)

    def register_view(self, view: AnyView, *, actor: str = "") -> ViewVersion:
        """Registers one view; as `register`."""
        with self._writing() as lines:
            self._add_view(view, actor, lines)
        return self.view(view.name)

    def uses(self, *, model: str, features: FeatureSet, name: str = "", actor: str = "") -> Use:
        """Records which features a model version was made with, and registers them.

        Args:
            model: Name and number of the version, such as `"fraud/3"`.
            features: The feature set it was made with; the model pins the versions of its views.
            name: What the set is called; the name of the model by default.
            actor: Who made it.

        Raises:
            Conflict: If the model version was recorded with other features: a version never changes.
            StoreError: If the catalogue cannot be written, or is damaged; nothing was added then.
        """
        set_name = name or model.rpartition("/")[0] or model
        if not model or not model.isprintable():
            raise InvalidInput("model", model, "be a name and a number, such as 'fraud/3'")
        with self._writing() as lines:
            known = self._uses.get(model)
            if known is not None:
                if known.features.version != features.version:
                    raise Conflict(
                        f"{model} was recorded with features {known.features.version}, not {features.version}; "
                        "give the new model another number"
                    )
                return known
            self._add_set(features, set_name, actor, lines)
            lines.append({"kind": "use", "model": model, "set": set_name, "version": features.version, "actor": actor})
        return self._uses[model]

    def _add_set(self, features: FeatureSet, name: str, actor: str, lines: list[dict[str, Any]]) -> None:
        for view in features.views:
            self._add_view(view, actor, lines)
        known = self._sets.get(name)
        if known and known[-1].version == features.version:
            return
        described = features.describe()
        lines.append(
            {
                "kind": "set",
                "name": name,
                "version": features.version,
                "actor": actor,
                "views": {view.name: view.version for view in features.views},
                **{part: described[part] for part in ("request", "on_demand", "select") if part in described},
            }
        )

    def _add_view(self, view: AnyView, actor: str, lines: list[dict[str, Any]]) -> None:
        newest = self._newest.get(view.name)
        words = words_of(view)
        if newest is not None and newest.version == view.version and words_of(newest.view) == words:
            return
        known = any(
            item.version == view.version and words_of(item.view) == words for item in self._views.get(view.name, ())
        )
        # A view that is again what it once was becomes the newest without being written twice.
        body: dict[str, Any] = {} if known else {"definition": view.describe()}
        lines.append(
            {"kind": "view", "name": view.name, "version": view.version, "actor": actor, "words": words, **body}
        )

    # Reading

    def views(self) -> tuple[ViewVersion, ...]:
        """Returns the newest version of each view, by name."""
        with self._reading():
            return tuple(self._newest[name] for name in sorted(self._newest))

    def versions(self, name: str) -> tuple[ViewVersion, ...]:
        """Returns all versions of a view, the oldest first.

        Raises:
            NotFound: If there is no view of that name.
        """
        with self._reading():
            if name not in self._views:
                raise NotFound("view", name, sorted(self._views))
            return tuple(self._views[name])

    def view(self, name: str, version: str | int | None = None) -> ViewVersion:
        """Returns a version of a view.

        Args:
            name: The view.
            version: Its number, or its content hash or the first four or more digits of it; by default the newest.

        Raises:
            NotFound: If there is none.
            InvalidInput: If the digits fit several versions.
        """
        with self._reading():
            found = self.versions(name)
            if version is None:
                return self._newest[name]
            return _chosen(f"version of view {name}", version, [(item.number, item.version, item) for item in found])

    def sets(self) -> tuple[SetVersion, ...]:
        """Returns the newest version of each feature set, by name."""
        with self._reading():
            return tuple(self._worded(self._sets[name][-1]) for name in sorted(self._sets))

    def set_versions(self, name: str) -> tuple[SetVersion, ...]:
        """Returns all versions of a feature set in the order of registration.

        Raises:
            NotFound: If there is no set of that name.
        """
        with self._reading():
            if name not in self._sets:
                raise NotFound("feature set", name, sorted(self._sets))
            return tuple(self._worded(item) for item in self._sets[name])

    def set(self, name: str, version: str | int | None = None) -> SetVersion:
        """Returns a version of a feature set; as `view`.

        Raises:
            NotFound: If there is none.
            InvalidInput: If the digits fit several versions.
        """
        found = self.set_versions(name)
        if version is None:
            return found[-1]
        numbered = [(number, item.version, item) for number, item in enumerate(found, start=1)]
        return _chosen(f"version of feature set {name}", version, numbered)

    def diff(self, name: str, old: str | int, new: str | int) -> DefinitionDiff:
        """Compares two versions of a view, or of a feature set where no view has that name.

        Args:
            name: The view or set.
            old: Number or content hash of the one version.
            new: Of the other.

        Raises:
            NotFound: If there is no such view, set or version.
        """
        with self._reading():
            if name in self._views:
                return diff_views(self.view(name, old).view, self.view(name, new).view)
            if name in self._sets:
                return diff_sets(self.set(name, old), self.set(name, new))
            raise NotFound("view or feature set", name, [*sorted(self._views), *sorted(self._sets)])

    def models(self) -> tuple[Use, ...]:
        """Returns the model versions and what they use, in the order in which they were recorded."""
        with self._reading():
            return tuple(Use(model=use.model, features=self._worded(use.features)) for use in self._uses.values())

    def users(self, name: str, version: str | None = None) -> tuple[str, ...]:
        """Names the model versions that use a feature set, a view or a feature.

        Args:
            name: Of the set, view or feature.
            version: Content hash of the set or view, where only that one counts.

        Raises:
            NotFound: If there is nothing of that name.
        """
        with self._reading():
            users = []
            for use in self._uses.values():
                features = use.features
                pinned = features.version if features.name == name else features.pins.get(name)
                if (pinned is not None and version in (None, pinned)) or (name in features.used and version is None):
                    users.append(use.model)
            if not users and not self._knows(name):
                raise NotFound("feature set, view or feature", name, [*sorted(self._sets), *sorted(self._views)])
            return tuple(users)

    def pins(self, model: str) -> Mapping[str, str]:
        """Returns the view versions that a model version was made with: view to content hash.

        Raises:
            NotFound: If it was not recorded.
        """
        with self._reading():
            if model not in self._uses:
                raise NotFound("use by model", model, self._uses)
            return dict(self._uses[model].pins)

    def unused(self, *, models: Collection[str] | None = None) -> tuple[Unused, ...]:
        """Names the features of the newest sets that no model uses.

        Args:
            models: Model versions that count, such as those in Production; all by default.
        """
        with self._reading():
            uses = [use for use in self._uses.values() if models is None or use.model in models]
            return tuple(item for features in self.sets() for item in unused(features, uses))

    def owners(self) -> Mapping[str, tuple[str, ...]]:
        """Returns who owns which views, the newest versions counting; "" stands for views without an owner."""
        found: dict[str, tuple[str, ...]] = {}
        for item in self.views():
            found[item.view.owner] = (*found.get(item.view.owner, ()), item.name)
        return dict(sorted(found.items()))

    def _worded(self, features: SetVersion) -> SetVersion:
        # The words of a view, such as its owner, may have changed since the set was registered.
        views = tuple(self._latest(name, version) for name, version in features.pins.items())
        return dataclasses.replace(features, views=views)

    def _latest(self, name: str, version: str) -> AnyView:
        if self._newest[name].version == version:
            return self._newest[name].view
        return [item for item in self._views[name] if item.version == version][-1].view

    def _knows(self, name: str) -> bool:
        in_sets = any(name in features.computed for versions in self._sets.values() for features in versions)
        return name in self._sets or name in self._views or in_sets

    # The file

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with self._guard:
            self._follow()
            yield

    @contextlib.contextmanager
    def _writing(self) -> Iterator[list[dict[str, Any]]]:
        facts: list[dict[str, Any]] = []
        with self._guard, self._journal.exclusive():
            self._follow()
            yield facts
            if facts:
                now = self.clock.now()
                self._journal.append([{**fact, "time": now} for fact in facts])
                self._follow()

    def _follow(self) -> None:
        for fact in self._journal.follow():
            {"view": self._take_view, "set": self._take_set, "use": self._take_use}[fact["kind"]](fact)

    def _take_view(self, body: Mapping[str, Any]) -> None:
        versions = self._views.setdefault(body["name"], [])
        if "definition" in body:
            view = view_of(body["definition"], body["words"])
            item = ViewVersion(
                number=len(versions) + 1,
                version=body["version"],
                registered=body["time"],
                actor=body["actor"],
                view=view,
            )
            versions.append(item)
        else:
            item = next(
                one for one in versions if one.version == body["version"] and words_of(one.view) == body["words"]
            )
        self._newest[body["name"]] = item

    def _take_set(self, body: Mapping[str, Any]) -> None:
        views = tuple(self._latest(name, version) for name, version in body["views"].items())
        document = {
            "version": body["version"],
            "views": [],
            **{part: body[part] for part in ("request", "on_demand", "select") if part in body},
        }
        bare = SetVersion.read(document, body["name"])
        self._sets.setdefault(body["name"], []).append(dataclasses.replace(bare, views=views, pins=dict(body["views"])))

    def _take_use(self, body: Mapping[str, Any]) -> None:
        features = next(item for item in reversed(self._sets[body["set"]]) if item.version == body["version"])
        self._uses[body["model"]] = Use(model=body["model"], features=features)


def _chosen(kind: str, wanted: str | int, found: list[tuple[int, str, Any]]) -> Any:
    text = str(wanted)
    if text.isdecimal() and len(text) < _LEAST_DIGITS:
        fitting = [item for number, _, item in found if number == int(text)]
    else:
        same = {version for _, version, _ in found if len(text) >= _LEAST_DIGITS and version.startswith(text)}
        if len(same) > 1:
            raise InvalidInput(kind, wanted, f"fit one version; it fits {', '.join(sorted(same))}")
        # Versions that differ in words alone share their hash: the latest of them is meant.
        fitting = [item for _, version, item in found if version in same][-1:]
    if not fitting:
        raise NotFound(kind, wanted, [f"{number} ({version})" for number, version, _ in found])
    return fitting[0]
