"""Compares what two versions of a contract allow: values of a column, keys and counts of a table."""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from vitok.contracts.contract import Field, Table
from vitok.contracts.rules import Metric, Rule, rule

_MOST_SHOWN = 80


@dataclass(frozen=True, kw_only=True)
class Found:
    """One difference with the reason for each side it breaks, before anybody looks from one of them.

    Attributes:
        table: The table, or "" for the whole contract.
        columns: The columns; none for the whole table.
        kind: What happened in a few words.
        consumer: Why it breaks consumers; "" where it does not.
        producer: Why it breaks producers; "" where it does not.
        review: Why a person should look, where it breaks nobody for sure.
        fine: Why it breaks nobody.
        old: What it was, in short.
        new: What it is.
    """

    table: str
    columns: tuple[str, ...] = ()
    kind: str
    consumer: str = ""
    producer: str = ""
    review: str = ""
    fine: str = "nothing that anybody relies on is touched"
    old: str = ""
    new: str = ""

    @property
    def where(self) -> str:
        """Table and columns in one word."""
        return f"{self.table}.{','.join(self.columns)}" if self.columns else self.table


Tell = Callable[..., Found]


def short(value: object) -> str:
    """Writes a value in at most 80 characters, on one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."


@dataclass(frozen=True)
class _Limits:
    """What the rules of a field that are more than warnings leave of its type.

    Ends are pairs that compare as the ends do: a lower one with whether it is open, an upper one with whether it
    is closed. Of whole numbers and times an open end is the closed one beside it.
    """

    low: tuple[float, bool] = (-math.inf, False)
    high: tuple[float, bool] = (math.inf, True)
    shortest: float = 0
    longest: float = math.inf
    allowed: frozenset[object] | None = None
    forbidden: frozenset[object] = frozenset()
    patterns: frozenset[object] = frozenset()
    others: tuple[Rule, ...] = ()


def _limits(field: Field) -> _Limits:
    whole = field.logical_type in {"integer", "timestamp", "date"}
    found = _Limits()
    for item in field.rules:
        bound: Any = item.bound
        if item.severity == "warn" or item.name in {"required", "type"}:
            continue
        match item.name:
            case "minimum":
                found = replace(found, low=max(found.low, (bound, False)))
            case "exclusiveMinimum":
                found = replace(found, low=max(found.low, (math.floor(bound) + 1, False) if whole else (bound, True)))
            case "maximum":
                found = replace(found, high=min(found.high, (bound, True)))
            case "exclusiveMaximum":
                found = replace(found, high=min(found.high, (math.ceil(bound) - 1, True) if whole else (bound, False)))
            case "minLength":
                found = replace(found, shortest=max(found.shortest, bound))
            case "maxLength":
                found = replace(found, longest=min(found.longest, bound))
            case "validValues":
                values = frozenset(bound)
                found = replace(found, allowed=values if found.allowed is None else found.allowed & values)
            case "missingValues":
                found = replace(found, forbidden=found.forbidden | frozenset(bound))
            case "pattern":
                found = replace(found, patterns=found.patterns | {bound})
            case _:
                found = replace(found, others=(*found.others, item))
    return found


def values(table: str, old: Field, new: Field) -> list[Found]:
    """Compares what the values of a column may be, by all rules that are more than warnings."""

    def tell(kind: str, **words: str) -> Found:
        return Found(table=table, columns=(old.name,), kind=kind, **words)

    found = []
    types = (old.logical_type, new.logical_type)
    pair = {"old": old.logical_type, "new": new.logical_type}
    if types == ("integer", "number"):
        found.append(tell("type widened", consumer="values may have a fraction now", **pair))
    elif types == ("number", "integer"):
        found.append(tell("type narrowed", producer="values with a fraction are refused now", **pair))
    elif types[0] != types[1]:
        consumer, producer = "the column reads as another type", "values of the old type may not be read as the new one"
        found.append(tell("type changed", consumer=consumer, producer=producer, **pair))
    if old.required and not new.required:
        found.append(tell("nulls allowed", consumer="values may be missing now", old="required", new="optional"))
    if new.required and not old.required:
        found.append(tell("required added", producer="nulls are refused now", old="optional", new="required"))
    one, two = _limits(old), _limits(new)
    if types[0] == types[1] or set(types) == {"integer", "number"}:
        found.extend(_ranges(tell, one, two, types))
    if types[0] == types[1]:
        found.extend(_lengths(tell, one, two))
        found.extend(_lists(tell, one, two, old.logical_type))
        found.extend(_others(tell, one, two))
    found.extend(_severities(tell, old, new))
    return found


def _ranges(tell: Tell, old: _Limits, new: _Limits, types: tuple[str, str]) -> list[Found]:
    shown = {"old": _range(old, types[0]), "new": _range(new, types[1])}
    wider, narrower = new.low < old.low or new.high > old.high, new.low > old.low or new.high < old.high
    return _moved(tell, "range", "values beyond the old range may come", wider, narrower, shown)


def _lengths(tell: Tell, old: _Limits, new: _Limits) -> list[Found]:
    shown = {"old": _length(old), "new": _length(new)}
    wider = new.shortest < old.shortest or new.longest > old.longest
    narrower = new.shortest > old.shortest or new.longest < old.longest
    return _moved(tell, "length", "texts of other lengths may come", wider, narrower, shown)


def _moved(tell: Tell, what: str, more: str, wider: bool, narrower: bool, shown: dict[str, str]) -> list[Found]:  # noqa: FBT001
    if not wider and not narrower:
        return []
    word = "moved" if wider and narrower else "widened" if wider else "narrowed"
    producer = f"some values that kept the old {what} are refused now" if narrower else ""
    return [tell(f"{what} {word}", consumer=more if wider else "", producer=producer, **shown)]


def _range(limits: _Limits, logical_type: str) -> str:
    low, high = "exclusiveMinimum" if limits.low[1] else "minimum", "maximum" if limits.high[1] else "exclusiveMaximum"
    ends = [(name, end) for name, end in ((low, limits.low[0]), (high, limits.high[0])) if math.isfinite(end)]
    words = [rule("", name, end, logical_type=logical_type).wanted for name, end in ends]
    return ", ".join(word.removeprefix("be ") for word in words) or "any"


def _length(limits: _Limits) -> str:
    longest = "any" if limits.longest == math.inf else f"{limits.longest:g}"
    return f"{limits.shortest:g} to {longest}"


def _lists(tell: Tell, old: _Limits, new: _Limits, logical_type: str) -> list[Found]:
    found = []
    if old.allowed is not None and new.allowed is None:
        found.append(
            tell("list of values dropped", consumer="any value may come", old=_listed(old.allowed, logical_type))
        )
    elif new.allowed is not None and old.allowed is None:
        reason = "values that are not listed are refused now"
        found.append(tell("list of values added", producer=reason, new=_listed(new.allowed, logical_type)))
    elif old.allowed is not None and new.allowed is not None:
        more, fewer = new.allowed - old.allowed, old.allowed - new.allowed
        if more:
            reason = "values may come that they do not know"
            found.append(tell("values added to the list", consumer=reason, new=_listed(more, logical_type)))
        if fewer:
            reason = "values that were good are refused now"
            found.append(tell("values removed from the list", producer=reason, old=_listed(fewer, logical_type)))
    if old.forbidden - new.forbidden:
        reason = "values may come that were refused"
        listed = _listed(old.forbidden - new.forbidden, logical_type)
        found.append(tell("refused values allowed", consumer=reason, old=listed))
    if new.forbidden - old.forbidden:
        reason = "values that were good are refused now"
        found.append(tell("values refused", producer=reason, new=_listed(new.forbidden - old.forbidden, logical_type)))
    lost, gained = old.patterns - new.patterns, new.patterns - old.patterns
    if lost or gained:
        word = "changed" if lost and gained else "dropped" if lost else "added"
        found.append(
            tell(
                f"pattern {word}",
                consumer="texts that the old pattern ruled out may come" if lost else "",
                producer="texts that kept the old contract may be refused now" if gained else "",
                old=short(" and ".join(sorted(map(str, lost)))),
                new=short(" and ".join(sorted(map(str, gained)))),
            )
        )
    return found


def _listed(members: Iterable[object], logical_type: str) -> str:
    bound: Any = tuple(sorted(members, key=lambda member: (str(type(member)), member)))
    return short(rule("", "missingValues", bound, logical_type=logical_type).wanted.removeprefix("be none of "))


def _others(tell: Tell, old: _Limits, new: _Limits) -> list[Found]:
    """Rules of which no order is known here: an old one that is gone lets more through, a new one less."""
    before = {(item.name, item.bound): item for item in old.others}
    after = {(item.name, item.bound): item for item in new.others}
    found = [
        tell("rule dropped", consumer="values that broke it may come", old=short(item.wanted))
        for key, item in before.items()
        if key not in after
    ]
    return found + [
        tell("rule added", producer="values that break it are refused now", new=short(item.wanted))
        for key, item in after.items()
        if key not in before
    ]


def _severities(tell: Tell, old: Field, new: Field) -> list[Found]:
    before = {(item.name, item.bound): item.severity for item in old.rules}
    after = {(item.name, item.bound): item.severity for item in new.rules}
    found = []
    for key, severity in before.items():
        now = after.get(key)
        if now is not None and now != severity and "warn" not in (severity, now):
            review = "what happens to data that breaks the rule is not what it was"
            found.append(tell(f"severity of {key[0]} changed", review=review, old=severity, new=now))
    warned = {key for key, severity in before.items() if severity == "warn"}
    warned ^= {key for key, severity in after.items() if severity == "warn"}
    if warned:
        names = ", ".join(sorted({name for name, _ in warned}))
        found.append(tell(f"warnings changed ({names})", fine="a warning refuses nothing and promises nothing"))
    return found


def keys(old: Table, new: Table) -> list[Found]:
    """Compares what is unique. A key of fewer columns says more: who is unique by one is unique by two."""
    before = {frozenset(key.fields): key for key in old.keys if key.rule.severity != "warn"}
    after = {frozenset(key.fields): key for key in new.keys if key.rule.severity != "warn"}
    found = []
    lost = [key for columns, key in before.items() if not any(other <= columns for other in after)]
    gained = [key for columns, key in after.items() if not any(other <= columns for other in before)]
    known = set(old.names) & set(new.names)
    for key in lost:
        if set(key.fields) <= known:
            reason = "rows may repeat now, and a join on it may multiply them"
            found.append(Found(table=old.name, columns=key.fields, kind="uniqueness dropped", consumer=reason))
    for key in gained:
        if set(key.fields) <= known:
            reason = "rows that repeat are refused now"
            found.append(Found(table=old.name, columns=key.fields, kind="uniqueness added", producer=reason))
    for columns, key in before.items():
        if columns not in after and key not in lost:
            fine = "the new key says more than the old one"
            found.append(Found(table=old.name, columns=key.fields, kind="key narrowed", fine=fine))
    return found


def counts(old: Table, new: Table) -> list[Found]:
    """Compares the numbers that are counted over the whole table, such as how many rows there are."""
    before, after = _named(old.metrics), _named(new.metrics)
    found: list[Found] = []
    for name, one in before.items():
        two = after.get(name)
        base = Found(table=old.name, columns=one.fields, kind=f"{one.name} dropped", old=short(one.wanted))
        if two is None:
            found.append(replace(base, consumer="nothing is promised of it any more"))
        elif two != one:
            found.append(_counted(one, two, replace(base, new=short(two.wanted))))
    for name, two in after.items():
        if name not in before:
            base = Found(table=new.name, columns=two.fields, kind=f"{two.name} added", new=short(two.wanted))
            found.append(replace(base, producer="data that was good may break it"))
    return found


def _named(metrics: Iterable[Metric]) -> dict[tuple[object, ...], Metric]:
    """Metrics by what they count; several of one kind by their place among them."""
    named: dict[tuple[object, ...], Metric] = {}
    for metric in metrics:
        place = 0
        while (metric.name, metric.fields, place) in named:
            place += 1
        named[metric.name, metric.fields, place] = metric
    return named


def _counted(old: Metric, new: Metric, base: Found) -> Found:
    more, less = "numbers that were ruled out may come", "numbers that were good are refused now"
    if replace(old, comparison=new.comparison, severity=new.severity) != new:
        return replace(base, kind=f"{old.name} changed", consumer=more, producer=less)
    looser, stricter = _compared(old, new)
    if not looser and not stricter:
        review = "what happens where it does not hold is not what it was"
        return replace(base, kind=f"severity of {old.name} changed", review=review, old=old.severity, new=new.severity)
    word = "moved" if looser and stricter else "widened" if looser else "narrowed"
    return replace(base, kind=f"{old.name} {word}", consumer=more if looser else "", producer=less if stricter else "")


_COUNTS = frozenset({"rowCount", "nullValues", "missingValues", "invalidValues", "duplicateValues"})


def _compared(old: Metric, new: Metric) -> tuple[bool, bool]:
    """Whether the new comparison holds where the old one does not, and the other way round.

    Both are unions of intervals that end at their bounds, so the bounds, what lies between them, and what lies
    beyond them show all there is.
    """
    one, two = old.comparison, new.comparison
    counted = old.name in _COUNTS
    ends = sorted({one.low, one.high, two.low, two.high} | ({0.0} if counted else set()))
    if counted and not old.percent:
        probes = {float(math.floor(end) + step) for end in ends for step in (-1, 0, 1, 2)}
    else:
        probes = {*ends, ends[0] - 1, ends[-1] + 1, *((a + b) / 2 for a, b in itertools.pairwise(ends))}
    seen = [value for value in probes if value >= 0 or not counted]
    looser = any(two.holds(value) and not one.holds(value) for value in seen)
    stricter = any(one.holds(value) and not two.holds(value) for value in seen)
    return looser, stricter
