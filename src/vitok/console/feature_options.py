"""What the options of `vitok features` say: sources, streams, keys and numbers as NAME=VALUE."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitok.errors import InvalidInput

if TYPE_CHECKING:
    from vitok.features import FeatureSet
    from vitok.features.views import AnyView


def grouped(option: str, texts: Sequence[str]) -> dict[str, list[str]]:
    """Takes NAME=VALUE apart: the values of each name, in the order given.

    Raises:
        InvalidInput: If a text has no name or no value.

    Example:
        >>> grouped("--key", ["card=7", "card=8"])
        {'card': ['7', '8']}
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        name, mark, value = text.partition("=")
        if not mark or not name.strip() or not value.strip():
            raise InvalidInput(option, text, "look like NAME=VALUE")
        found.setdefault(name.strip(), []).append(value.strip())
    return found


def single(option: str, texts: Sequence[str]) -> dict[str, str]:
    """As `grouped`, where each name comes once.

    Raises:
        InvalidInput: If one comes twice.
    """
    found = grouped(option, texts)
    for name, values in found.items():
        if len(values) > 1:
            raise InvalidInput(option, [f"{name}={value}" for value in values], f"name {name} once")
    return {name: values[0] for name, values in found.items()}


def known(option: str, name: str, names: Sequence[str]) -> None:
    """Checks that a name is one of those that there are.

    Raises:
        InvalidInput: If it is not.
    """
    if name not in names:
        raise InvalidInput(option, name, f"name one of {', '.join(names) or 'none: there is no source'}")


def numbers(option: str, texts: Sequence[str], n: int) -> dict[str, list[float]]:
    """Reads columns of n numbers; one number stands for n.

    Raises:
        InvalidInput: If a text is no number.
    """
    found: dict[str, list[float]] = {}
    for name, values in grouped(option, texts).items():
        try:
            column = [float(value) for value in values]
        except ValueError:
            raise InvalidInput(option, f"{name}={', '.join(values)}", "be a number") from None
        found[name] = column * n if len(column) == 1 else column
    return found


def sources_of(
    features: "FeatureSet", texts: Sequence[str] | None, *, among: "FeatureSet | None" = None
) -> dict[str, list[str]]:
    """Says where each source is to be read: as given, else at its location.

    Args:
        features: The views that will be read.
        texts: What the options say.
        among: The set that they were chosen from, whose other sources may be named too.

    Raises:
        InvalidInput: If a source has no files, or a name is that of none.
    """
    found = grouped("--source", texts or [])
    names = [source.name for source in (among or features).sources]
    for name in found:
        known("--source", name, names)
    for source in features.sources:
        if source.name not in found:
            place = source.location.removeprefix("file://")
            if not place or place.startswith(("kafka://", "memory://")):
                told = f"is at {place}, which is a stream" if place else "has no location"
                fix = f"Source {source.name!r} {told}: write --source {source.name}=PATH."
                raise InvalidInput("--source", sorted(found), f"hold {source.name}", fix)
            found[source.name] = [place]
    return found


def files_of(sets: "Sequence[FeatureSet]", texts: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Returns the files to look into, and the sources that nobody gave files of.

    Raises:
        InvalidInput: If a name is that of no source.
    """
    found = grouped("--source", texts or [])
    sources = {source.name: source for features in sets for source in features.sources}
    for name in found:
        known("--source", name, sorted(sources))
    left_out = [
        name + (f" at {source.location}" if source.location else "")
        for name, source in sources.items()
        if name not in found
    ]
    return [path for paths in found.values() for path in paths], left_out


def streams_of(sets: "Sequence[FeatureSet]", texts: Sequence[str]) -> dict[str, str]:
    """Says at which address the stream of each source is; the name may be left out where there is one source.

    Raises:
        InvalidInput: If a name is that of no source, is missing, or comes twice.
    """
    names = sorted({view.source.name for features in sets for view in features.windowed})
    found: dict[str, str] = {}
    for text in texts:
        name, mark, url = text.partition("=")
        if not mark or "://" in name:
            if len(names) != 1:
                raise InvalidInput("--stream", text, f"look like NAME=ADDRESS, with one of {', '.join(names)}")
            name, url = names[0], text
        known("--stream", name, names)
        if name in found:
            raise InvalidInput("--stream", name, "be given once a source")
        found[name] = url
    return found


def indexes_of(features: "FeatureSet", indexes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the indexes that a set asks for, of all that a file holds."""
    wanted = {getattr(view, "reference", None) for view in features.views}
    return {name: index for name, index in indexes.items() if name in wanted}


def chosen(features: "FeatureSet", names: Sequence[str] | None) -> "FeatureSet":
    """Returns a set of some views alone; the set itself where none is named.

    Raises:
        InvalidInput: If there is no such view.
    """
    from vitok.features import FeatureSet

    if not names:
        return features
    for name in names:
        known("--view", name, [view.name for view in features.views])
    return FeatureSet(views=tuple(view for view in features.views if view.name in names))


def all_views(sets: "Sequence[FeatureSet]") -> "FeatureSet":
    """Returns one set of the views of all.

    Raises:
        InvalidInput: If two sets differ about a view.
    """
    from vitok.features import FeatureSet

    found: dict[str, AnyView] = {}
    for features in sets:
        for view in features.views:
            if found.setdefault(view.name, view).version != view.version:
                raise InvalidInput(
                    "--definitions", view.name, "be the same view in all sets", "Name one set as FILE:NAME."
                )
    return FeatureSet(views=tuple(found.values()))


def filled(store: str) -> None:
    """Refuses a folder of an online store that does not exist.

    To open a folder makes it: a name that was mistyped would answer that nothing is known of anybody.

    Raises:
        InvalidInput: If it does not exist.
    """
    scheme, _, place = store.partition("://")
    if scheme == "lmdb" and not Path(place.partition("?")[0]).is_dir():
        raise InvalidInput("--store", store, "be a folder that exists", "vitok features materialise fills one.")
