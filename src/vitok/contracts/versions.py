"""Walks through two versions of a contract, element by element, so that nothing that differs is left untold."""

import datetime as dt
import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vitok.clock import DAY, HOUR, MINUTE, SECOND, parse_time
from vitok.contracts import document as read
from vitok.contracts.contract import Contract, Freshness, Table
from vitok.contracts.differences import Found, counts, keys, short, values
from vitok.contracts.notice import custom, notice_period
from vitok.errors import InvalidInput

# Words of ODCS tools, from what anybody may see to what few may.
_CLASSES = ("public", "internal", "confidential", "restricted", "secret")
_PERSONAL = frozenset({"pii", "personal", "personaldata"})
_UNITS = frozenset({"unit", "unitOfMeasure", "vitok.unit"})
_MEANING = frozenset(
    {"description", "businessName", "semanticType", "dataGranularityDescription", "context", "physicalType"}
    | {"transformSourceObjects", "transformLogic", "transformDescription", "encryptedName", "deprecated"}
    | {"items", "map", "variables"}
)
# What is judged by itself, so that the sweep over what is left does not tell it twice.
_JUDGED_COLUMN = frozenset(
    {"id", "name", "logicalType", "required", "unique", "primaryKey", "primaryKeyPosition", "enum", "quality"}
    | {"customProperties", "tags", "classification", "relationships", "physicalName", "logicalTypeOptions"}
)
_JUDGED_TABLE = frozenset({"id", "name", "properties", "quality", "customProperties", "relationships", "physicalName"})
_JUDGED_CONTRACT = frozenset(
    {"apiVersion", "kind", "version", "schema", "slaProperties", "slaDefaultElement", "customProperties", "status"}
    | {"contractCreatedTs", "id", "servers"}
)
_JUDGED_OPTIONS = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern", "multipleOf"}
)
_OF_THIS_VERSION = frozenset({"announced", "effectiveFrom", "noticePeriod", "changeNotice"})
# Service levels of which more is worse for a consumer, and those of which less is.
_MORE_IS_WORSE = frozenset(
    {"errorrate", "er", "frequency", "fy", "timetodetect", "td", "timetonotify", "tn", "timetorepair", "tr"}
    | {"timeofavailability", "generalavailability", "ga"}
)
_LESS_IS_WORSE = frozenset(
    {"availability", "av", "throughput", "th", "retention", "re", "endofsupport", "es", "endoflife", "el"}
)
_FRESHNESS = frozenset({"freshness", "fr", "latency", "ly"})
_NOTICE = frozenset({"noticeperiod", "changenotice"})
_LENGTHS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), SECOND),
    **dict.fromkeys(("min", "minute", "minutes"), MINUTE),
    **dict.fromkeys(("h", "hr", "hour", "hours"), HOUR),
    **dict.fromkeys(("d", "day", "days"), DAY),
    **dict.fromkeys(("w", "week", "weeks"), 7 * DAY),
    **dict.fromkeys(("y", "yr", "year", "years"), 365 * DAY),
}


def contract_level(old: Contract, new: Contract, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Found]:
    """Compares what is said of the contract as a whole, service levels included."""
    found = []
    if old.id != new.id:
        reason = "who knows the contract by its id does not find it"
        found.append(Found(table="", kind="id changed", consumer=reason, producer=reason, old=old.id, new=new.id))
    if old.status != new.status:
        found.append(_status(old.status, new.status))
    if _plain(before.get("servers")) != _plain(after.get("servers")):
        review = "where the data is read from is not what it was"
        found.append(Found(table="", kind="servers changed", review=review))
    found.extend(_custom("", (), before, after))
    found.extend(_rest("", (), before, after, _JUDGED_CONTRACT))
    found.extend(_freshness(old, new))
    found.extend(_levels(before, after))
    found.extend(_notice(before, after))
    return found


def _status(old: str, new: str) -> Found:
    found = Found(table="", kind="status changed", old=old or "not said", new=new or "not said")
    if new.lower() == "retired":
        return replace(found, kind="retired", consumer="the data is no longer kept up")
    if new.lower() == "deprecated":
        return replace(found, kind="deprecated", review="the data is going away; look for what follows it")
    return found


def tables(old: Contract, new: Contract, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Found]:
    """Compares the tables of two versions with all that is said of them."""
    olds, news = {table.name: table for table in old.tables}, {table.name: table for table in new.tables}
    old_raw, new_raw = _by_name(before.get("schema")), _by_name(after.get("schema"))
    found: list[Found] = []
    for name, table in olds.items():
        if name in news:
            found.extend(_table(table, news[name], old_raw[name], new_raw[name]))
        else:
            found.append(Found(table=name, kind="table removed", consumer="who reads it finds nothing"))
    for name in news:
        if name not in olds:
            found.append(Found(table=name, kind="table added", producer="it must be delivered as well"))
    return found


def _by_name(value: object) -> dict[str, dict[str, Any]]:
    return {str(item["name"]): item for item in read.entries(value, "schema")}


def _table(old: Table, new: Table, before: dict[str, Any], after: dict[str, Any]) -> list[Found]:
    olds, news = {field.name: field for field in old.fields}, {field.name: field for field in new.fields}
    old_raw, new_raw = _by_name(before.get("properties")), _by_name(after.get("properties"))
    removed, added = [name for name in olds if name not in news], [name for name in news if name not in olds]
    renamed = _renamed(removed, added, old_raw, new_raw)
    found = [_removed(old.name, name, renamed.get(name), added) for name in removed]
    for name in added:
        if name not in renamed.values():
            need = "with a value in each row" if news[name].required else "though its values may be null"
            reason = f"it must be delivered, {need}"
            found.append(Found(table=new.name, columns=(name,), kind="column added", producer=reason))
    for name, field in olds.items():
        if name in news:
            found.extend(values(old.name, field, news[name]))
            found.extend(_column_words(old.name, name, old_raw[name], new_raw[name]))
    found.extend(keys(old, new))
    found.extend(counts(old, new))
    found.extend(_words(old.name, (), before, after))
    found.extend(_rest(old.name, (), before, after, _JUDGED_TABLE))
    return found


def _renamed(
    removed: Sequence[str], added: Sequence[str], old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]
) -> dict[str, str]:
    """Columns that kept their id, which the standard has for this, and not their name."""
    by_id = {new[name]["id"]: name for name in added if new[name].get("id")}
    return {name: by_id[old[name]["id"]] for name in removed if old[name].get("id") in by_id}


def _removed(table: str, name: str, now: str | None, added: Sequence[str]) -> Found:
    if now is not None:
        reason = f"it is called {now!r} now"
        return Found(
            table=table, columns=(name,), kind="column renamed", consumer=reason, producer=reason, old=name, new=now
        )
    close = difflib.get_close_matches(name, added, n=1, cutoff=0.6)
    hint = f"; perhaps {close[0]!r} is what it is called now" if close else ""
    return Found(table=table, columns=(name,), kind="column removed", consumer=f"who reads it finds nothing{hint}")


def _column_words(table: str, name: str, before: dict[str, Any], after: dict[str, Any]) -> list[Found]:
    columns = (name,)
    found = _words(table, columns, before, after)
    one, two = before.get("classification"), after.get("classification")
    if one != two:
        found.append(_classified(table, columns, str(one or "").lower(), str(two or "").lower()))
    options, now = before.get("logicalTypeOptions") or {}, after.get("logicalTypeOptions") or {}
    for key in sorted({*options, *now} - _JUDGED_OPTIONS):
        if options.get(key) == now.get(key):
            continue
        zone = key in {"timezone", "defaultTimezone"}
        reason = "the same text is another moment now"
        found.append(
            Found(
                table=table,
                columns=columns,
                kind=f"{key} changed",
                consumer=reason if zone else "",
                producer=reason if zone else "",
                review="values may be written otherwise now",
                old=short(options.get(key) or ""),
                new=short(now.get(key) or ""),
            )
        )
    found.extend(_rest(table, columns, before, after, _JUDGED_COLUMN))
    return found


def _classified(table: str, columns: tuple[str, ...], old: str, new: str) -> Found:
    """Stricter is worse for consumers, who must handle what they hold otherwise; of unknown words it may be."""
    place = {name: index for index, name in enumerate(_CLASSES)}
    known = (not old or old in place) and (not new or new in place)
    laxer = known and place.get(new, -1) < place.get(old, -1)
    return Found(
        table=table,
        columns=columns,
        kind="classification changed",
        consumer="" if laxer else "the data must be handled with more care than before",
        review="the data may be handled with less care than before",
        old=old or "none",
        new=new or "none",
    )


def _words(table: str, columns: tuple[str, ...], before: dict[str, Any], after: dict[str, Any]) -> list[Found]:
    """What is said alike of tables and of columns."""
    name = columns[0] if columns else table
    found = []
    one, two = before.get("physicalName") or name, after.get("physicalName") or name
    if one != two:
        reason = "it is stored under another name"
        renamed = Found(table=table, columns=columns, kind="physical name changed", old=one, new=two)
        found.append(replace(renamed, consumer=reason, producer=reason))
    found.extend(_custom(table, columns, before, after))
    found.extend(_personal(table, columns, before, after))
    relations = "values may point to rows that are not there", "values that point to no row are refused now"
    found.extend(_entries(table, columns, "relationship", relations, before, after, "relationships"))
    statements = "data may come that broke it", "data that was good may break it"
    found.extend(_entries(table, columns, "quality rule", statements, before, after, "quality"))
    return found


def _entries(
    table: str,
    columns: tuple[str, ...],
    what: str,
    reasons: tuple[str, str],
    before: dict[str, Any],
    after: dict[str, Any],
    key: str,
) -> list[Found]:
    """Compares lists of which no order is known: an entry is there or it is not."""
    old = {_plain(item): item for item in read.entries(before.get(key), key) if _is_opaque(key, item)}
    new = {_plain(item): item for item in read.entries(after.get(key), key) if _is_opaque(key, item)}
    found = []
    for text, item in old.items():
        if text not in new:
            found.append(
                Found(table=table, columns=columns, kind=f"{what} dropped", consumer=reasons[0], old=_named(item))
            )
    for text, item in new.items():
        if text not in old:
            found.append(
                Found(table=table, columns=columns, kind=f"{what} added", producer=reasons[1], new=_named(item))
            )
    return found


def _is_opaque(key: str, item: object) -> bool:
    """Library rules are compared by what they state; a rule in words, SQL or another tool's language cannot be."""
    return key != "quality" or (isinstance(item, Mapping) and item.get("type", "library") != "library")


def _named(item: Mapping[str, Any]) -> str:
    for key in ("name", "description", "to", "query", "rule"):
        if item.get(key):
            return short(item[key])
    return short(_plain(item))


def _custom(table: str, columns: tuple[str, ...], before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Found]:
    old, new = custom(before, table), custom(after, table)
    found = []
    for key in sorted({*old, *new}):
        # Severities are compared as part of the rules; a note of a draft is for its owner only.
        if old.get(key) == new.get(key) or key.startswith(("vitok.severity", "vitok.draft")):
            continue
        if (not table and key in _OF_THIS_VERSION) or key.lower() in _PERSONAL:
            continue
        one, two = short(old.get(key, "")), short(new.get(key, ""))
        changed = Found(table=table, columns=columns, kind=f"{key} changed", old=one, new=two)
        if key in _UNITS:
            reason = "the same number means something else now"
            found.append(replace(changed, kind="unit changed", consumer=reason, producer=reason))
        else:
            found.append(replace(changed, review="what it means is known to those who wrote it"))
    return found


def _personal(table: str, columns: tuple[str, ...], before: dict[str, Any], after: dict[str, Any]) -> list[Found]:
    old, new = _is_personal(before, table), _is_personal(after, table)
    if old == new:
        return []
    if new:
        reason = "it counts as personal data now and must be handled so"
        return [Found(table=table, columns=columns, kind="personal data", consumer=reason)]
    review = "it no longer counts as personal data"
    return [Found(table=table, columns=columns, kind="no personal data", review=review)]


def _is_personal(element: dict[str, Any], where: str) -> bool:
    tagged = any(str(tag).lower() in _PERSONAL for tag in read.entries(element.get("tags"), where))
    return tagged or any(name.lower() in _PERSONAL and bool(value) for name, value in custom(element, where).items())


def _rest(
    table: str,
    columns: tuple[str, ...],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    judged: Collection[str],
) -> list[Found]:
    """What is left: words with a meaning are for a person to judge; a price, a team or an example breaks nobody."""
    found = []
    for key in sorted({*before, *after} - set(judged)):
        if _plain(before.get(key)) == _plain(after.get(key)):
            continue
        one, two = short(_text(before.get(key))), short(_text(after.get(key)))
        review = "what the data means may not be what it was" if key in _MEANING else ""
        found.append(Found(table=table, columns=columns, kind=f"{key} changed", review=review, old=one, new=two))
    return found


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else _plain(value)


def _plain(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)


def _freshness(old: Contract, new: Contract) -> list[Found]:
    def named(contract: Contract) -> dict[tuple[str, str], Freshness]:
        return {(item.table, item.field): item for item in contract.freshness}

    before, after = named(old), named(new)
    kept = {table.name: table.names for table in new.tables}
    found = []
    for (table, field), one in before.items():
        two = after.get((table, field))
        base = Found(table=table, columns=(field,), kind="freshness", old=one.wanted)
        if two is None:
            # A column that is gone is told as such.
            if field in kept.get(table, ()):
                found.append(replace(base, kind="freshness dropped", consumer="the data may be of any age now"))
        elif two != one:
            later, sooner = two.limit > one.limit, two.limit < one.limit
            found.append(
                replace(
                    base,
                    kind="freshness " + ("loosened" if later else "tightened" if sooner else "changed"),
                    new=two.wanted,
                    consumer="the data may be older than before" if later else "",
                    producer="data that was fresh enough is too old now" if sooner else "",
                    review="it is told or judged otherwise than before",
                )
            )
    for (table, field), two in after.items():
        if (table, field) not in before:
            reason = "the data must be fresh now"
            found.append(Found(table=table, columns=(field,), kind="freshness added", producer=reason, new=two.wanted))
    return found


def _levels(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Found]:
    """Service levels other than freshness, by property, element and driver."""

    def named(document: Mapping[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
        found = {}
        for entry in read.entries(document.get("slaProperties"), "slaProperties"):
            name = str(entry.get("property", "")).lower()
            if name not in _FRESHNESS | _NOTICE:
                found[name, str(entry.get("element") or ""), str(entry.get("driver") or "")] = entry
        return found

    old, new = named(before), named(after)
    found = []
    for key, one in old.items():
        two = new.get(key)
        name = str(one["property"])
        if two is None:
            consumer = "nothing is promised of it any more"
            found.append(Found(table="", kind=f"service level {name} dropped", consumer=consumer, old=_level(one)))
        elif (one.get("value"), one.get("unit"), one.get("valueExt")) != (
            two.get("value"),
            two.get("unit"),
            two.get("valueExt"),
        ):
            found.append(_level_moved(name, one, two))
    for key, two in new.items():
        if key not in old:
            producer = "it must be kept now"
            kind = f"service level {two['property']} added"
            found.append(Found(table="", kind=kind, producer=producer, new=_level(two)))
    return found


def _level_moved(name: str, one: Mapping[str, Any], two: Mapping[str, Any]) -> Found:
    before, after = _amount(one), _amount(two)
    base = Found(table="", kind=f"service level {name} written otherwise", old=_level(one), new=_level(two))
    known = name.lower() in _MORE_IS_WORSE | _LESS_IS_WORSE
    if before is None or after is None or type(before) is not type(after) or not known:
        kind = f"service level {name} changed"
        return replace(base, kind=kind, review="which of the two promises more is not known")
    if before == after:
        return base
    grew = after > before  # type: ignore[operator]  # they are of one type
    looser = grew if name.lower() in _MORE_IS_WORSE else not grew
    return replace(
        base,
        kind=f"service level {name} " + ("loosened" if looser else "tightened"),
        consumer="less is promised than before" if looser else "",
        producer="" if looser else "more must be kept than before",
    )


def _amount(entry: Mapping[str, Any]) -> float | str | None:
    """A number in its smallest unit, or a time of day or a moment as a text that sorts; None where it is neither."""
    value, unit = entry.get("value"), str(entry.get("unit") or "").lower()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) * _LENGTHS.get(unit, 1)
    if isinstance(value, dt.date):
        value = value.isoformat()
    if isinstance(value, str) and not unit:
        try:
            return float(parse_time(value))
        except InvalidInput:
            return value if len(value) >= 5 and value[2] == ":" and value[:2].isdigit() else None
    return None


def _level(entry: Mapping[str, Any]) -> str:
    return " ".join(str(entry[key]) for key in ("value", "valueExt", "unit") if entry.get(key) is not None)


def _notice(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Found]:
    old, new = notice_period(before), notice_period(after)
    if old == new:
        return []
    shorter = new < old
    return [
        Found(
            table="",
            kind="notice period " + ("shortened" if shorter else "lengthened"),
            consumer="the next breaking change may come sooner" if shorter else "",
            producer="" if shorter else "the next breaking change must be told of earlier",
            old=f"{old / DAY:g} d",
            new=f"{new / DAY:g} d",
        )
    ]
