"""Two versions of a contract, one change at a time, and what is to be said of each."""

BASE = """\
apiVersion: v3.1.0
kind: DataContract
id: shop
version: 1.4.0
status: active
description: {purpose: Orders to learn from}
schema:
  - name: orders
    description: One order.
    properties:
      - {name: id, logicalType: string, primaryKey: true, description: Names the order.}
      - {name: user, logicalType: string, required: true, id: u1}
      - {name: time, logicalType: timestamp, required: true}
      - {name: amount, logicalType: number, logicalTypeOptions: {minimum: 0, maximum: 100}}
      - {name: count, logicalType: integer, logicalTypeOptions: {minimum: 1}}
      - {name: code, logicalType: string, logicalTypeOptions: {pattern: "^[A-Z]+$", maxLength: 8}}
      - name: kind
        logicalType: string
        quality:
          - {metric: invalidValues, arguments: {validValues: [a, b]}, mustBe: 0}
          - {metric: nullValues, mustBeLessThan: 5, unit: percent}
    quality:
      - {metric: rowCount, mustBeGreaterThan: 10}
      - {type: sql, query: select 1, mustBe: 1}
  - name: users
    properties:
      - {name: user, logicalType: string, unique: true}
slaProperties:
  - {property: freshness, value: 1, unit: d, element: orders.time}
  - {property: retention, value: 3, unit: y}
  - {property: timeOfAvailability, value: "06:00"}
  - {property: noticePeriod, value: 30, unit: d}
"""

BOTH, CONSUMER, PRODUCER, NOBODY = ("consumer", "producer"), ("consumer",), ("producer",), ()

USERS = "  - name: users\n    properties:\n      - {name: user, logicalType: string, unique: true}\n"
LISTED = "          - {metric: invalidValues, arguments: {validValues: [a, b]}, mustBe: 0}\n"
FRESH = "  - {property: freshness, value: 1, unit: d, element: orders.time}\n"
BY_SIX = '  - {property: timeOfAvailability, value: "06:00"}\n'
COUNT = "      - {name: count, logicalType: integer, logicalTypeOptions: {minimum: 1}}\n"
USER, AMOUNT = "name: user, logicalType: string, required", "name: amount,"

# What is replaced by what, and what is to be said of it: where, kind, and whom it breaks.
CHANGES: list[tuple[str, str, str, str, tuple[str, ...]]] = [
    (COUNT, "", "orders.count", "column removed", CONSUMER),
    ("name: count,", "name: counts,", "orders.count", "column removed", CONSUMER),
    ("name: count,", "name: counts,", "orders.counts", "column added", PRODUCER),
    (USER, USER.replace("user", "user_id"), "orders.user", "column renamed", BOTH),
    ("name: time, logicalType: timestamp", "name: time, logicalType: date", "orders.time", "type changed", BOTH),
    (
        "name: amount, logicalType: number",
        "name: amount, logicalType: integer",
        "orders.amount",
        "type narrowed",
        PRODUCER,
    ),
    ("name: count, logicalType: integer", "name: count, logicalType: number", "orders.count", "type widened", CONSUMER),
    (
        "time, logicalType: timestamp, required: true",
        "time, logicalType: timestamp",
        "orders.time",
        "nulls allowed",
        CONSUMER,
    ),
    (
        "count, logicalType: integer",
        "count, required: true, logicalType: integer",
        "orders.count",
        "required added",
        PRODUCER,
    ),
    ("minimum: 0, maximum: 100", "minimum: 0, maximum: 200", "orders.amount", "range widened", CONSUMER),
    ("minimum: 0, maximum: 100", "minimum: 0, maximum: 50", "orders.amount", "range narrowed", PRODUCER),
    ("minimum: 0, maximum: 100", "minimum: 10, maximum: 110", "orders.amount", "range moved", BOTH),
    ("minimum: 0, maximum: 100", "exclusiveMinimum: 0, maximum: 100", "orders.amount", "range narrowed", PRODUCER),
    (", logicalTypeOptions: {minimum: 0, maximum: 100}", "", "orders.amount", "range widened", CONSUMER),
    ("maxLength: 8", "maxLength: 9", "orders.code", "length widened", CONSUMER),
    ("maxLength: 8", "maxLength: 8, minLength: 2", "orders.code", "length narrowed", PRODUCER),
    ('pattern: "^[A-Z]+$"', 'pattern: "^[a-z]+$"', "orders.code", "pattern changed", BOTH),
    ('pattern: "^[A-Z]+$", ', "", "orders.code", "pattern dropped", CONSUMER),
    ("validValues: [a, b]", "validValues: [a, b, c]", "orders.kind", "values added to the list", CONSUMER),
    ("validValues: [a, b]", "validValues: [a]", "orders.kind", "values removed from the list", PRODUCER),
    (LISTED, "", "orders.kind", "list of values dropped", CONSUMER),
    ("mustBe: 0}", "mustBe: 0, severity: warning}", "orders.kind", "list of values dropped", CONSUMER),
    (
        "id, logicalType: string, primaryKey: true",
        "id, logicalType: string, required: true",
        "orders.id",
        "uniqueness dropped",
        CONSUMER,
    ),
    (USER, f"{USER}: true, unique", "orders.user", "uniqueness added", PRODUCER),
    (USER, f"{USER}: true, primaryKey", "orders.id", "uniqueness dropped", CONSUMER),
    ("mustBeLessThan: 5", "mustBeLessThan: 6", "orders.kind", "nullValues widened", CONSUMER),
    ("mustBeLessThan: 5", "mustBeLessThan: 4", "orders.kind", "nullValues narrowed", PRODUCER),
    ("mustBeGreaterThan: 10", "mustBeGreaterThan: 5", "orders", "rowCount widened", CONSUMER),
    ("mustBeGreaterThan: 10", "mustBeBetween: [5, 20]", "orders", "rowCount moved", BOTH),
    ("      - {metric: rowCount, mustBeGreaterThan: 10}\n", "", "orders", "rowCount dropped", CONSUMER),
    (
        "mustBeGreaterThan: 10",
        "mustBeGreaterThan: 10, severity: error",
        "orders",
        "severity of rowCount changed",
        NOBODY,
    ),
    ("select 1", "select 2", "orders", "quality rule dropped", CONSUMER),
    ("select 1", "select 2", "orders", "quality rule added", PRODUCER),
    (USERS, "", "users", "table removed", CONSUMER),
    ("  - name: users\n", "  - name: members\n", "members", "table added", PRODUCER),
    (
        "value: 1, unit: d, element: orders.time",
        "value: 36, unit: h, element: orders.time",
        "orders.time",
        "freshness loosened",
        CONSUMER,
    ),
    (
        "value: 1, unit: d, element: orders.time",
        "value: 12, unit: h, element: orders.time",
        "orders.time",
        "freshness tightened",
        PRODUCER,
    ),
    (FRESH, "", "orders.time", "freshness dropped", CONSUMER),
    ("value: 3, unit: y", "value: 30, unit: d", "", "service level retention loosened", CONSUMER),
    ("value: 3, unit: y", "value: 4, unit: y", "", "service level retention tightened", PRODUCER),
    ("value: 3, unit: y", "value: 1095, unit: d", "", "service level retention written otherwise", NOBODY),
    ('"06:00"', '"09:00"', "", "service level timeOfAvailability loosened", CONSUMER),
    (BY_SIX, "", "", "service level timeOfAvailability dropped", CONSUMER),
    ("noticePeriod, value: 30", "noticePeriod, value: 10", "", "notice period shortened", CONSUMER),
    ("noticePeriod, value: 30", "noticePeriod, value: 60", "", "notice period lengthened", PRODUCER),
    ("Names the order.", "Names the basket.", "orders.id", "description changed", NOBODY),
    ("One order.", "One basket.", "orders", "description changed", NOBODY),
    ("Orders to learn from", "Orders to look at", "", "description changed", NOBODY),
    (AMOUNT, "name: amount, classification: restricted,", "orders.amount", "classification changed", CONSUMER),
    (AMOUNT, "name: amount, tags: [PII],", "orders.amount", "personal data", CONSUMER),
    (AMOUNT, f"{AMOUNT} customProperties: [{{property: unit, value: EUR}}],", "orders.amount", "unit changed", BOTH),
    (AMOUNT, "name: amount, physicalName: amt,", "orders.amount", "physical name changed", BOTH),
    (AMOUNT, "name: amount, physicalType: DOUBLE,", "orders.amount", "physicalType changed", NOBODY),
    (AMOUNT, "name: amount, examples: [1],", "orders.amount", "examples changed", NOBODY),
    (
        AMOUNT,
        f"{AMOUNT} customProperties: [{{property: vitok.severity, value: block}}],",
        "orders.amount",
        "severity of maximum changed",
        NOBODY,
    ),
    (USER, f"relationships: [{{to: users.user}}], {USER}", "orders.user", "relationship added", PRODUCER),
    ("status: active", "status: retired", "", "retired", CONSUMER),
    ("status: active", "status: deprecated", "", "deprecated", NOBODY),
    ("id: shop", "id: store", "", "id changed", BOTH),
    ("status: active", "status: active\nprice: {priceAmount: 9}", "", "price changed", NOBODY),
]
