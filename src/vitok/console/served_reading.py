"""What the feature service has served, as it kept it by the hour: for the commands that show it."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vitok.clock import DAY, HOUR, isoformat
from vitok.engines import LmdbStore
from vitok.errors import InvalidInput, NotFound
from vitok.features.described import SetVersion
from vitok.features.served import ServedFeature, ServedWindow, load
from vitok.features.served_writer import AGE

if TYPE_CHECKING:
    from vitok.features import FeatureSet
    from vitok.stats import FrozenEdges


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetServed:
    """What was served of one version of a feature set.

    Attributes:
        name: The set.
        version: Content hash of its definitions.
        windows: Ranges of whole hours in which anything was served, in order.
    """

    name: str
    version: str
    windows: tuple[ServedWindow, ...]

    def __str__(self) -> str:
        n = sum(window.n for window in self.windows)
        return f"{self.name} {self.version}: {n:,} vectors, {isoformat(self.windows[0].start)} to " + isoformat(
            self.windows[-1].end
        )


def place(home: Path) -> Path:
    """Returns the folder in which a service keeps what it served."""
    return home / "served"


def served(
    home: Path, *, now: int, since: int | None = None, until: int | None = None, by: int | None = None
) -> tuple[SetServed, ...]:
    """Reads what was served; empty where nothing was kept.

    Args:
        home: Folder of everything vitok writes.
        now: The present, microseconds.
        since: From the hour that holds this moment; by default the 24 hours up to now.
        until: Up to the hour that holds this moment, inclusive.
        by: Length of each range, whole hours in microseconds; by default one range.

    Raises:
        InvalidInput: If the range is empty or `by` is not whole hours.
        StoreError: If the store cannot be read.
    """
    first = (now - DAY if since is None else since) // HOUR * HOUR + (HOUR if since is None else 0)
    end = -(-(now if until is None else until) // HOUR) * HOUR
    step = end - first if by is None else by
    if end <= first:
        raise InvalidInput("until", isoformat(end), f"be after {isoformat(first)}")
    if step <= 0 or step % HOUR:
        raise InvalidInput("by", by, "be whole hours, such as 1h or 1d")
    if not (place(home) / "data.mdb").is_file():
        return ()
    store = LmdbStore(place(home))
    try:
        found = load(store, since=first, until=end)
    finally:
        store.close()
    out = []
    for one in found:
        begins = sorted({first + (hour - first) // step * step for hour in one.hours})
        if begins:
            name, _, version = one.about.rpartition(" ")
            windows = tuple(one.window(begin, min(begin + step, end)) for begin in begins)
            out.append(SetServed(name=name, version=version, windows=windows))
    return tuple(sorted(out, key=lambda item: item.windows[-1].end, reverse=True))


def columns_of(found: SetServed, name: str, sets: Iterable[SetVersion]) -> tuple[str, ...]:
    """Returns the columns that a name stands for: a feature, a view with the age of its values, or a set.

    Raises:
        NotFound: If it stands for none.
    """
    columns = tuple(item.name for item in found.windows[0].features)
    if name in ("", found.name):
        return columns
    wanted = {name, name + AGE}
    for features in sets:
        wanted |= {one for view in features.views if view.name == name for one in view.feature_names}
    chosen = tuple(column for column in columns if column in wanted)
    if not chosen:
        views = [column.removesuffix(AGE) for column in columns if column.endswith(AGE)]
        raise NotFound("view or feature that was served", name, [*views, *columns])
    return chosen


def last_day(home: Path, features: SetVersion, *, now: int) -> dict[str, ServedFeature]:
    """Returns what the service served of some definitions in the last 24 hours, by feature."""
    for one in served(home, now=now):
        if (one.name, one.version) == (features.name, features.version):
            return {item.name: item for item in one.windows[0].features}
    return {}


def reference_edges(home: Path, features: "FeatureSet") -> "dict[str, FrozenEdges]":
    """Returns the frozen edges of the reference of the version in Production, where it was made with these definitions.

    Raises:
        StoreError: If the registry cannot be read.
        NotFound: If the version's package is not there.
    """
    from vitok.console import stores

    state = stores.state(home)
    if state.production is None:
        return {}
    version = state.version(state.production)
    document, profile = stores.document(home, version, "features.json"), stores.profile(home, version)
    if document is None or profile is None or SetVersion.read(document, version.model).version != features.version:
        return {}
    return {name: edges for name, edges in zip(profile.columns, profile.edges, strict=True) if name in features.names}
