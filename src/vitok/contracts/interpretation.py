"""Turns the document of an ODCS v3 contract into the rules it states, and refuses what it cannot honour."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from vitok.clock import DAY, HOUR, MINUTE, SECOND
from vitok.contracts import document as read
from vitok.contracts.bounds import allowed_values, bound_of, contradictions
from vitok.contracts.contract import Contract, Delivery, Field, Freshness, Key, Relationship, Table
from vitok.contracts.deliveries import time_of_day, zone_of
from vitok.contracts.notice import NAMES
from vitok.contracts.quality import Statement, quality
from vitok.contracts.references import Elements, refuse_types, relationships
from vitok.contracts.rules import LOGICAL_TYPES, LogicalType, Rule, Severity, rule, severity_of
from vitok.errors import InvalidInput

API_VERSIONS = ("v3.0.0", "v3.0.1", "v3.0.2", "v3.1.0", "v3.2.0")

_ELEMENT_KEYS = read.keys(
    "id name physicalType physicalName description businessName deprecated synonyms authoritativeDefinitions tags "
    "customProperties logicalType relationships quality properties"
)
_TABLE_KEYS = _ELEMENT_KEYS | {"dataGranularityDescription", "context"}
_PROPERTY_KEYS = _ELEMENT_KEYS | read.keys(
    "primaryKey primaryKeyPosition logicalTypeOptions semanticType required unique partitioned partitionKeyPosition "
    "classification encryptedName transformSourceObjects transformLogic transformDescription examples enum "
    "criticalDataElement items map"
)
_CONTRACT_KEYS = read.keys(
    "version kind apiVersion id name tenant tags status servers dataProduct description domain context schema support "
    "price team roles slaDefaultElement slaProperties authoritativeDefinitions customProperties "
    "contractCreatedTs"
)
_SLA_KEYS = read.keys(
    "id property value valueExt unit element driver description scheduler schedule customProperties "
    "authoritativeDefinitions"
)
_RANGE = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": (*_RANGE, "format", "multipleOf"),
    "integer": (*_RANGE, "format", "multipleOf"),
    "timestamp": (*_RANGE, "format", "timezone", "defaultTimezone"),
    "date": (*_RANGE, "format"),
    "boolean": (),
}
_NOT_SUPPORTED = {"multipleOf"}
_NOT_CHECKED = {"format", "timezone", "defaultTimezone"}
_UNITS = {
    SECOND: ("s", "sec", "second", "seconds"),
    MINUTE: ("min", "minute", "minutes"),
    HOUR: ("h", "hr", "hour", "hours"),
    DAY: ("d", "day", "days"),
    7 * DAY: ("w", "week", "weeks"),
    365 * DAY: ("y", "yr", "year", "years"),
}
_FRESHNESS = {"freshness": "freshness", "fr": "freshness", "latency": "latency", "ly": "latency"}
_DELIVERIES = {"timeofavailability": "timeOfAvailability", "frequency": "frequency", "fy": "frequency"}
SEVERITY_KEY = "vitok.severity"


def load(path_or_text: str | Path) -> Contract:
    """Reads a contract written in the Open Data Contract Standard, version 3.

    Args:
        path_or_text: A file, or the contract itself as a text of more than one line.

    Returns:
        The contract. What it says beyond types, nulls, ranges, lengths, patterns, allowed values, keys, relationships,
        counts, distributions, SQL and when data is there is kept in its text and named in `not_checked`.

    Raises:
        NotFound: If the file does not exist.
        InvalidInput: If it is not YAML, not a data contract of a known version, has a key that the standard does
            not have, or asks for a type or a rule that is not supported.

    References:
        Bitol, Open Data Contract Standard, v3.0.2, v3.1.0 and v3.2.0.

    Example:
        >>> contract = load('''
        ... apiVersion: v3.1.0
        ... kind: DataContract
        ... id: payments
        ... version: 1.0.0
        ... status: active
        ... schema:
        ...   - name: payments
        ...     properties:
        ...       - name: amount
        ...         logicalType: number
        ...         required: true
        ...         logicalTypeOptions: {minimum: 0}
        ... ''')
        >>> print(contract)
        payments 1.0.0 (active), owner: not named
        payments:
          amount               number     required; be at least 0
    """
    return interpret(read.read_text(path_or_text))


def interpret(text: str) -> Contract:
    """Reads a contract from its text; see `load`."""
    document = read.parse(text)
    kind = document.get("kind")
    if kind != "DataContract":
        raise InvalidInput("kind", kind, "be 'DataContract'")
    api_version = document.get("apiVersion")
    if api_version not in API_VERSIONS:
        known = ", ".join(API_VERSIONS)
        raise InvalidInput("apiVersion", api_version, f"be a version that can be read: {known}")
    read.known_keys(document, _CONTRACT_KEYS, "contract")
    not_checked: list[str] = []
    tables: list[Table] = []
    elements = Elements(document)
    for position, item in enumerate(read.entries(document.get("schema"), "schema")):
        table = _table(read.mapping(item, f"schema[{position}]"), position, elements, not_checked)
        if any(table.name == other.name for other in tables):
            raise InvalidInput("schema", table.name, "be the name of one table only")
        tables.append(table)
    if not tables:
        raise InvalidInput("schema", document.get("schema"), "list at least one table")
    refuse_types(tables)
    identifier = read.text(document.get("id"), "id")
    return Contract(
        id=identifier,
        name=read.optional_text(document.get("name"), "name") or identifier,
        version=read.text(document.get("version"), "version"),
        status=read.optional_text(document.get("status"), "status"),
        api_version=api_version,
        owner=_owner(document.get("team")),
        description=_description(document.get("description")),
        tables=tuple(tables),
        freshness=_freshness(document, tables, not_checked),
        deliveries=_deliveries(document, tables, not_checked),
        not_checked=tuple(not_checked),
        text=text,
    )


def _owner(team: object) -> str:
    """The member whose role is owner, else the team, else its first member (v3.0 has a list, v3.1 an object)."""
    named = ""
    if isinstance(team, Mapping):
        named = read.optional_text(team.get("name"), "team.name")
        team = team.get("members")
    members = [read.mapping(item, "team") for item in read.entries(team, "team")]
    owners = [item for item in members if "owner" in str(item.get("role", "")).lower()]
    for item in owners or ([] if named else members[:1]):
        found = item.get("name") or item.get("username")
        if found:
            return str(found)
    return named


def _description(value: object) -> str:
    if isinstance(value, Mapping):
        value = value.get("purpose") or value.get("usage")
    return read.optional_text(value, "description").strip()


def _table(item: dict[str, Any], position: int, elements: Elements, not_checked: list[str]) -> Table:
    where = f"schema[{position}]"
    name = read.text(item.get("name"), f"{where}.name")
    where = f"schema.{name}"
    read.known_keys(item, _TABLE_KEYS, where)
    properties = read.entries(item.get("properties"), f"{where}.properties")
    if not properties:
        raise InvalidInput(f"{where}.properties", item.get("properties"), "list at least one property")
    fields: list[Field] = []
    keys: list[Key] = []
    statements: list[Statement] = []
    related: list[Relationship] = []
    types = {
        str(value.get("name")): str(value.get("logicalType")) for value in properties if isinstance(value, Mapping)
    }
    primary: list[tuple[int, str, Severity]] = []
    for index, value in enumerate(properties):
        entry = read.mapping(value, f"{where}.properties[{index}]")
        column = read.text(entry.get("name"), f"{where}.properties[{index}].name")
        if any(column == other.name for other in fields):
            raise InvalidInput(f"{where}.properties", column, "be the name of one property only")
        inner = f"{where}.{column}"
        severities = _severities(entry.get("customProperties"), inner)
        logical_type = _logical_type(entry, inner)
        found = quality(entry.get("quality"), f"{inner}.quality", column, not_checked, table=name, types=types)
        statements.append(found)
        fields.append(_field(entry, column, logical_type, found, inner, severities, not_checked))
        related.extend(_related(entry, inner, name, column, types, elements, not_checked))
        is_primary = read.flag(entry.get("primaryKey"), f"{inner}.primaryKey")
        unique_severity = severities.get("unique", severities.get("", "quarantine"))
        if is_primary:
            place = entry.get("primaryKeyPosition")
            primary.append((place if isinstance(place, int) and place > 0 else index + 1, column, unique_severity))
        if read.flag(entry.get("unique"), f"{inner}.unique"):
            keys.append(Key(fields=(column,), rule=rule(column, "unique", severity=unique_severity)))
    if primary:
        primary.sort()
        columns = tuple(column for _, column, _ in primary)
        keys.append(Key(fields=columns, rule=rule(",".join(columns), "unique", severity=primary[0][2])))
    statements.append(quality(item.get("quality"), f"{where}.quality", "", not_checked, table=name, types=types))
    related.extend(_related(item, where, name, "", types, elements, not_checked))
    for statement in statements:
        keys.extend(Key(fields=tuple(one.field.split(",")), rule=one) for one in statement.unique)
    # A primary key is often declared unique as well; the same key twice would count the same rows twice.
    keys = list({key.fields: key for key in reversed(keys)}.values())[::-1]
    return Table(
        name=name,
        description=read.optional_text(item.get("description"), f"{where}.description").strip(),
        fields=tuple(fields),
        keys=tuple(keys),
        metrics=tuple(metric for statement in statements for metric in statement.metrics),
        relationships=tuple(related),
        conditions=tuple(one for statement in statements for one in statement.conditions),
        queries=tuple(one for statement in statements for one in statement.queries),
        measures=tuple(one for statement in statements for one in statement.measures),
    )


def _related(
    entry: Mapping[str, Any],
    where: str,
    table: str,
    column: str,
    types: Mapping[str, str],
    elements: Elements,
    not_checked: list[str],
) -> list[Relationship]:
    inner = f"{where}.relationships"
    severities: dict[str, Severity] = {}
    for position, value in enumerate(read.entries(entry.get("relationships"), inner)):
        place = f"{inner}[{position}]"
        found = _severities(read.mapping(value, place).get("customProperties"), place)
        if "" in found:
            severities[place] = found[""]
    return relationships(entry.get("relationships"), inner, table, column, types, elements, severities, not_checked)


def _logical_type(entry: Mapping[str, Any], where: str) -> LogicalType:
    logical_type = entry.get("logicalType")
    if logical_type not in LOGICAL_TYPES:
        fix = "Types of the standard other than these are not supported yet"
        raise InvalidInput(f"{where}.logicalType", logical_type, f"be one of {', '.join(LOGICAL_TYPES)}", fix)
    return cast("LogicalType", logical_type)


def _severities(custom: object, where: str) -> dict[str, Severity]:
    """Severities of a property's own rules: by the name of the rule, or "" for all of them."""
    found: dict[str, Severity] = {}
    for item in read.entries(custom, f"{where}.customProperties"):
        entry = read.mapping(item, f"{where}.customProperties")
        name = str(entry.get("property", ""))
        if name == SEVERITY_KEY or name.startswith(SEVERITY_KEY + "."):
            key = name[len(SEVERITY_KEY) + 1 :]
            found[key] = severity_of(entry.get("value"), f"{where}.customProperties.{name}")
    return found


def _field(
    entry: dict[str, Any],
    name: str,
    logical_type: LogicalType,
    found: Statement,
    where: str,
    severities: dict[str, Severity],
    not_checked: list[str],
) -> Field:
    read.known_keys(entry, _PROPERTY_KEYS, where)
    required = read.flag(entry.get("required"), f"{where}.required")
    required = required or read.flag(entry.get("primaryKey"), f"{where}.primaryKey")
    rules: list[Rule] = []
    if required or any(item.name == "required" for item in found.rules):
        rules.append(rule(name, "required"))
    rules.append(rule(name, "type", logical_type=logical_type))
    if logical_type == "number":
        rules.append(rule(name, "finite"))
    options = read.mapping(entry.get("logicalTypeOptions") or {}, f"{where}.logicalTypeOptions")
    read.known_keys(options, _OPTIONS[logical_type], f"{where}.logicalTypeOptions")
    for key, value in options.items():
        inner = f"{where}.logicalTypeOptions.{key}"
        if key in _NOT_SUPPORTED:
            raise InvalidInput(inner, value, "be left out: this rule is not supported yet")
        if key in _NOT_CHECKED:
            not_checked.append(f"{name}: {key} {value}")
            continue
        rules.append(rule(name, key, bound_of(value, key, logical_type, inner), logical_type=logical_type))
    contradictions(rules, where)
    allowed = [read.mapping(item, f"{where}.enum").get("value") for item in read.entries(entry.get("enum"), where)]
    if allowed:
        rules.append(allowed_values(allowed, f"{where}.enum", name, logical_type))
    rules = [_with_severity(item, severities) for item in rules]
    stated = {item.name: item for item in found.rules if item.name == "required"}
    rules = [stated.get(item.name, item) if not required else item for item in rules]
    rules.extend(item for item in found.rules if item.name != "required")
    unknown = set(severities) - {"", "unique"} - {item.name for item in rules}
    if unknown:
        names = ", ".join(item.name for item in rules)
        raise InvalidInput(f"{where}.customProperties", sorted(unknown), f"name a rule that the field has: {names}")
    return Field(
        name=name,
        logical_type=logical_type,
        required=any(item.name == "required" and item.severity != "warn" for item in rules),
        description=read.optional_text(entry.get("description"), f"{where}.description").strip(),
        rules=tuple(rules),
    )


def _with_severity(item: Rule, severities: Mapping[str, Severity]) -> Rule:
    """A value that cannot be read has no place in a column of its type, so `type` is never a mere warning."""
    severity = severities.get(item.name, severities.get("", item.severity))
    if item.name == "type" and severity == "warn":
        severity = "quarantine"
    return Rule(field=item.field, name=item.name, wanted=item.wanted, severity=severity, bound=item.bound)


def _freshness(document: dict[str, Any], tables: list[Table], not_checked: list[str]) -> tuple[Freshness, ...]:
    found: list[Freshness] = []
    for position, item in enumerate(read.entries(document.get("slaProperties"), "slaProperties")):
        where = f"slaProperties[{position}]"
        entry = read.mapping(item, where)
        read.known_keys(entry, _SLA_KEYS, where)
        name = read.text(entry.get("property"), f"{where}.property")
        kind = _FRESHNESS.get(name.lower())
        if kind is None:
            # A check has nothing to say of the notice; `diff` holds a change to it.
            if name.lower() not in _DELIVERIES and name.lower() not in NAMES:
                not_checked.append(f"slaProperties: {name} {entry.get('value')}")
            continue
        limit = _length(entry, where)
        found.extend(
            Freshness(
                table=table,
                field=column,
                name=kind,
                limit=limit,
                wanted=f"be at most {entry['value']} {entry['unit']} old",
                severity=_promised(entry, where),
            )
            for table, column in _elements(entry, document, tables, where)
        )
    return tuple(found)


def _length(entry: Mapping[str, Any], where: str) -> int:
    amount = read.number(entry.get("value"), f"{where}.value")
    unit = str(entry.get("unit") or "")
    scale = next((size for size, names in _UNITS.items() if unit.lower() in names), None)
    if scale is None:
        known = ", ".join(names[0] for names in _UNITS.values())
        raise InvalidInput(f"{where}.unit", entry.get("unit"), f"be one of {known}")
    length = round(amount * scale)
    if length <= 0:
        raise InvalidInput(f"{where}.value", entry.get("value"), "be longer than zero")
    return length


def _promised(entry: Mapping[str, Any], where: str) -> Severity:
    severity = _severities(entry.get("customProperties"), where).get("", "warn")
    if severity == "quarantine":
        raise InvalidInput(f"{where}.customProperties", severity, "be warn or block: it judges no single row")
    return severity


def _elements(
    entry: Mapping[str, Any], document: Mapping[str, Any], tables: list[Table], where: str
) -> list[tuple[str, str]]:
    listed = read.text(entry.get("element") or document.get("slaDefaultElement"), f"{where}.element")
    return [_element(element.strip(), tables, f"{where}.element") for element in listed.split(",")]


def _deliveries(document: dict[str, Any], tables: list[Table], not_checked: list[str]) -> tuple[Delivery, ...]:
    """By when, and how often, data is there; how often also says what "by when" counts in."""
    found: list[Delivery] = []
    periods: dict[tuple[str, str], int] = {}
    entries = [read.mapping(item, "slaProperties") for item in read.entries(document.get("slaProperties"), "")]
    order = sorted(range(len(entries)), key=lambda index: str(entries[index].get("property")).lower()[:1] != "f")
    for position in order:
        entry, where = entries[position], f"slaProperties[{position}]"
        kind = _DELIVERIES.get(str(entry.get("property")).lower())
        if kind is None:
            continue
        if not (entry.get("element") or document.get("slaDefaultElement")):
            not_checked.append(f"slaProperties: {entry['property']} {entry.get('value')} (it names no element)")
            continue
        for table, column in _elements(entry, document, tables, where):
            place = {"table": table, "field": column, "severity": _promised(entry, where)}
            if kind == "frequency":
                periods[table, column] = every = _length(entry, where)
                wanted = f"bring data every {entry['value']} {entry['unit']}"
                found.append(Delivery(name=kind, every=every, wanted=wanted, **place))  # type: ignore[arg-type]
                continue
            moment, offset = time_of_day(entry.get("value"), f"{where}.value")
            zone = offset or _zone(entry, where)
            zone_of(zone, f"{where}.valueExt")
            every = periods.get((table, column), DAY)
            if every % DAY:
                raise InvalidInput(where, entry["value"], "belong to data of whole days", "Promise a latency instead")
            days = "a day" if every == DAY else f"{every // DAY} days"
            clock = f"{moment // HOUR:02}:{moment // MINUTE % 60:02} {zone}"
            wanted = f"have the data of {days} by {clock} on the day after"
            found.append(Delivery(name=kind, every=every, due=moment, zone=zone, wanted=wanted, **place))  # type: ignore[arg-type]
    return tuple(found)


def _zone(entry: Mapping[str, Any], where: str) -> str:
    """The standard has an offset in the value; a zone by its name stands in the extended value."""
    return "UTC" if entry.get("valueExt") is None else read.text(entry["valueExt"], f"{where}.valueExt")


def _element(element: str, tables: list[Table], where: str) -> tuple[str, str]:
    """Finds `table.column`, or `column` where the contract has one table; names themselves may contain dots."""
    for table in tables:
        for item in table.fields:
            if element == f"{table.name}.{item.name}" or (len(tables) == 1 and element == item.name):
                if item.logical_type not in {"timestamp", "date"}:
                    raise InvalidInput(where, element, f"be a timestamp or a date; it is of type {item.logical_type}")
                return table.name, item.name
    known = ", ".join(
        f"{table.name}.{item.name}"
        for table in tables
        for item in table.fields
        if item.logical_type in {"timestamp", "date"}
    )
    raise InvalidInput(where, element, "be a time of the contract, as table.column", f"There is: {known or 'none'}")
