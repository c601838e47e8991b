"""What differs between two definitions: features added, removed, changed, and whether served values change."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vitok.features.aggregations import TopK
from vitok.features.described import Feature, SetVersion, features_of, words_of
from vitok.features.views import AnyView, Latest, View

# Fields that name something and change no value, though they are part of the content hash.
_NAMES = frozenset({"entity.name"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldChange:
    """One field of a definition that is not as it was.

    Attributes:
        field: Which, as a path such as `"source.event_time"`.
        old: What it was, in short; "" where there was nothing.
        new: What it is.
        changes_values: Whether served values change by it.
        features: Features that it touches, by their new names; empty for words such as the owner.
    """

    field: str
    old: str
    new: str
    changes_values: bool
    features: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.field}: {self.old or 'nothing'} -> {self.new or 'nothing'}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefinitionDiff:
    """What differs between two versions of a view or of a feature set.

    Attributes:
        name: Name of the view or set.
        old: Content hash of the one.
        new: Content hash of the other.
        added: Features that only the new one has.
        removed: Features that only the old one has.
        renamed: Features whose values are the same under another name: (old name, new name).
        changed: Features of one name and other values.
        fields: What differs, field by field.
        reordered: Whether the features that both have come in another order.
    """

    name: str
    old: str
    new: str
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    changed: tuple[str, ...] = ()
    fields: tuple[FieldChange, ...] = ()
    reordered: bool = False

    @property
    def values_change(self) -> bool:
        """Whether what is served under the old names is not what it was."""
        return bool(self.removed or self.renamed or self.changed)

    @property
    def same(self) -> bool:
        """Whether nothing differs at all."""
        return not (self.added or self.values_change or self.fields or self.reordered or self.old != self.new)

    def to_dict(self) -> dict[str, Any]:
        """Returns the difference as what JSON can hold."""
        return {
            "name": self.name,
            "old": self.old,
            "new": self.new,
            "values_change": self.values_change,
            "added": list(self.added),
            "removed": list(self.removed),
            "renamed": [list(pair) for pair in self.renamed],
            "changed": list(self.changed),
            "reordered": self.reordered,
            "fields": [dataclasses.asdict(item) for item in self.fields],
        }

    def __str__(self) -> str:
        if self.same:
            return f"{self.name} {self.old}: nothing differs"
        told = "served values change" if self.values_change else "no served value changes"
        lines = [f"{self.name} {self.old} -> {self.new}: {told}"]
        lines += [f"  added    {name}" for name in self.added]
        lines += [f"  removed  {name}" for name in self.removed]
        lines += [f"  renamed  {old} -> {new}, its values stay" for old, new in self.renamed]
        lines += [f"  changed  {name}" for name in self.changed]
        if self.reordered:
            lines.append("  the features come in another order")
        for item in self.fields:
            touched = f" (touches {_some(item.features)})" if item.features else ""
            lines.append(f"  {item}{touched}")
        return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def diff_views(old: AnyView, new: AnyView) -> DefinitionDiff:
    """Compares two definitions of a view.

    Args:
        old: The one.
        new: The other.

    Returns:
        What differs; features are matched by name, and by fingerprint where a name is gone.

    Example:
        >>> from vitok.features import Entity, Mean, Source, View
        >>> card, paid = Entity("card", "card_id"), Source("payments", "payment_id")
        >>> old = View(name="card", entity=card, source=paid, aggregations=(Mean("amount", ("1d", "7d")),))
        >>> means = (Mean("net", ("7d",), name="amount_mean"),)
        >>> new = View(name="card", entity=card, source=paid, aggregations=means, owner="ann")
        >>> print(diff_views(old, new))
        card 25a4a897f223 -> d49264f8b3a9: served values change
          removed  card_amount_mean_1d
          changed  card_amount_mean_7d
          owner: nothing -> ann
          amount_mean.column: amount -> net (touches card_amount_mean_7d)
          amount_mean.over: 1d, 7d -> 7d
    """
    before, after = features_of(old), features_of(new)
    found = _matched({one.name: one.fingerprint for one in before}, {one.name: one.fingerprint for one in after})
    return DefinitionDiff(
        name=new.name,
        old=old.version,
        new=new.version,
        fields=(*_words(old, new), *_fields(old, new, before, after, set(found["changed"]))),
        **found,
    )


def _matched(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, Any]:
    gone = [name for name in before if name not in after]
    come = [name for name in after if name not in before]
    renamed = []
    for name in gone:
        same = [other for other in come if after[other] == before[name]]
        if len(same) == 1:
            renamed.append((name, same[0]))
            come.remove(same[0])
    left = {name for name, _ in renamed}
    kept = [name for name in before if name in after]
    return {
        "added": tuple(come),
        "removed": tuple(name for name in gone if name not in left),
        "renamed": tuple(renamed),
        "changed": tuple(name for name in kept if before[name] != after[name]),
        "reordered": kept != [name for name in after if name in before],
    }


def _words(old: AnyView, new: AnyView) -> list[FieldChange]:
    before, after = dict(_flat(words_of(old))), dict(_flat(words_of(new)))
    return [
        FieldChange(field=name, old=before.get(name, ""), new=after.get(name, ""), changes_values=False)
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _fields(
    old: AnyView, new: AnyView, before: Sequence[Feature], after: Sequence[Feature], changed: set[str]
) -> list[FieldChange]:
    one, two = dict(_flat(_by_title(old.describe()))), dict(_flat(_by_title(new.describe())))
    recipes = {item.name: dict(_flat(item.recipe)) for item in before}
    moved = {item.name: _moved(recipes[item.name], dict(_flat(item.recipe))) for item in after if item.name in changed}
    titles = _titles(new)
    found = []
    for field in dict.fromkeys([*one, *two]):
        if one.get(field) == two.get(field):
            continue
        title, _, rest = field.partition(".")
        touched = tuple(
            name
            for name, parts in moved.items()
            if (titles.get(name) == (rest if title == "latest" else title) and rest != "over")
            or (field not in _NAMES and _recipe_name(field) in parts)
        )
        found.append(
            FieldChange(
                field=field,
                old=one.get(field, ""),
                new=two.get(field, ""),
                changes_values=bool(touched),
                features=touched,
            )
        )
    return found


def _moved(before: Mapping[str, str], after: Mapping[str, str]) -> frozenset[str]:
    return frozenset(name for name in {*before, *after} if before.get(name) != after.get(name))


def _recipe_name(field: str) -> str:
    # A feature's recipe has shorter names for what all features of a view share.
    renamed = {"entity.key": "keys", "source.name": "source", "lag": "available_after", "exact": "window"}
    return renamed.get(field, field.removeprefix("source."))


def _titles(view: AnyView) -> dict[str, str]:
    """The part of the description that each feature comes from: the title of its aggregation, or its column."""
    if isinstance(view, View):
        names = iter(view.feature_names)
        return {
            next(names): item.title
            for item in view.aggregations
            for _ in range(len(item.over) * (item.k if isinstance(item, TopK) else getattr(item, "n", 1)))
        }
    return dict(zip(view.feature_names, view.columns, strict=True)) if isinstance(view, Latest) else {}


def _by_title(described: Mapping[str, Any]) -> dict[str, Any]:
    # Aggregations are known by their titles, so that one more in between does not look like a change of all after it.
    out = {name: value for name, value in described.items() if name not in {"aggregations", "name"}}
    for item in described.get("aggregations", ()):
        out[item["name"]] = {name: value for name, value in item.items() if name != "name"}
    return out


def _flat(value: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, str]]:
    for name, item in value.items():
        here = f"{path}{name}"
        if isinstance(item, Mapping):
            yield from _flat(item, f"{here}.")
        else:
            yield here, _short(item)


def _short(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(" ".join(map(str, item)) if isinstance(item, (list, tuple)) else str(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def diff_sets(old: SetVersion, new: SetVersion) -> DefinitionDiff:
    """Compares two versions of a feature set: the columns that a model sees, and the views behind them."""
    found = _matched(*({name: one.fingerprints[name] for name in one.names} for one in (old, new)))
    fields: list[FieldChange] = []
    for name, before, after in _pairs(old.pins, new.pins):
        if before != after:
            touched = tuple(one for one in found["changed"] if one in new.view(name).feature_names) if after else ()
            fields.append(
                FieldChange(field=f"view {name}", old=before, new=after, changes_values=bool(touched), features=touched)
            )
    bodies = ({item.name: item for item in old.on_demand}, {item.name: item for item in new.on_demand})
    for name in bodies[1]:
        if name in bodies[0] and bodies[0][name].body != bodies[1][name].body:
            one, two = bodies[0][name].body, bodies[1][name].body
            fields.append(
                FieldChange(field=f"function {name}", old=one, new=two, changes_values=True, features=(name,))
            )
        if name in bodies[0] and bodies[0][name].inputs != bodies[1][name].inputs:
            one, two = ", ".join(bodies[0][name].inputs), ", ".join(bodies[1][name].inputs)
            fields.append(
                FieldChange(field=f"inputs of {name}", old=one, new=two, changes_values=True, features=(name,))
            )
    return DefinitionDiff(name=new.name, old=old.version, new=new.version, fields=tuple(fields), **found)


def _pairs(old: Mapping[str, str], new: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    for name in dict.fromkeys([*old, *new]):
        yield name, old.get(name, ""), new.get(name, "")
