"""Good and bad data with the contract it is checked by and the verdict: one rule a case.

`bench/contracts/interop.py` asks another tool of the standard for its verdict on the same files; `declared` says why,
where it is known to differ.
"""

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

HEAD = """\
apiVersion: {api}
kind: DataContract
id: verdicts
name: verdicts
version: 1.0.0
status: active
schema:
  - name: rows
    properties:
"""
TIME = "- {name: at, logicalType: timestamp, required: true}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One file of data and what is to be said of it.

    Attributes:
        name: What the case is about.
        properties: The columns of the contract, in YAML, one a line.
        data: The rows.
        good: Whether they keep the contract.
        table: Further lines of the table, such as its quality rules.
        promises: Lines of `slaProperties`.
        api: Version of the standard.
        text: The file as CSV where it is one; Parquet otherwise.
        declared: Why the other tool is known to give another verdict; "" where it gives the same.
    """

    name: str
    properties: str
    data: pl.DataFrame = field(repr=False)
    good: bool
    table: str = ""
    promises: str = ""
    api: str = "v3.1.0"
    text: bool = False
    declared: str = ""

    @property
    def contract(self) -> str:
        """The contract as a text."""
        lines = [HEAD.format(api=self.api).rstrip()]
        lines += [f"      {line}" for line in self.properties.strip().splitlines()]
        lines += [f"    {line}" for line in self.table.strip("\n").splitlines()]
        if self.promises:
            lines += ["slaProperties:", *(f"  {line}" for line in self.promises.strip().splitlines())]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Writes contract and data; the contract names the file, as the other tool wants it."""
        folder.mkdir(parents=True, exist_ok=True)
        kind = "csv" if self.text else "parquet"
        data = folder / f"rows.{kind}"
        if self.text:
            self.data.write_csv(data)
        else:
            self.data.write_parquet(data)
        contract = folder / "contract.odcs.yaml"
        server = f"servers:\n  - {{server: local, type: local, path: '{data}', format: {kind}}}\n"
        contract.write_text(self.contract + server)
        return contract, data


def text_cases() -> list[Case]:
    """Rules of texts."""
    column = "- {name: code, logicalType: string, "
    valid = "- name: code\n  logicalType: string\n  quality:\n    - {metric: invalidValues, mustBe: 0, arguments: {"
    listed = valid + "validValues: [a, b]}}"
    missing = listed.replace("invalidValues, mustBe", "missingValues, mustBe").replace(
        "validValues: [a, b]", "missingValues: ['', 'N/A']"
    )

    def rows(*values: str | None) -> pl.DataFrame:
        return pl.DataFrame({"code": list(values)}, schema={"code": pl.String()})

    return [
        Case(name="text", properties=column + "required: true}", data=rows("a", ""), good=True),
        Case(name="text, null", properties=column + "required: true}", data=rows("a", None), good=False),
        Case(name="text, null allowed", properties=column + "required: false}", data=rows("a", None), good=True),
        Case(
            name="length",
            properties=column + "logicalTypeOptions: {minLength: 1, maxLength: 3}}",
            data=rows("a", "abc", None),
            good=True,
        ),
        Case(
            name="too short",
            properties=column + "logicalTypeOptions: {minLength: 2}}",
            data=rows("ab", "a"),
            good=False,
        ),
        Case(
            name="too long",
            properties=column + "logicalTypeOptions: {maxLength: 2}}",
            data=rows("ab", "abc"),
            good=False,
        ),
        Case(
            name="length in letters",
            properties=column + "logicalTypeOptions: {maxLength: 2}}",
            data=rows("ße", "日本"),
            good=True,
        ),
        Case(
            name="pattern",
            properties=column + 'logicalTypeOptions: {pattern: "^[A-Z]{3}$"}}',
            data=rows("ABC", None),
            good=True,
        ),
        Case(
            name="pattern, not kept",
            properties=column + 'logicalTypeOptions: {pattern: "^[A-Z]{3}$"}}',
            data=rows("ABC", "ABCD"),
            good=False,
        ),
        Case(
            name="pattern that is not anchored",
            properties=column + 'logicalTypeOptions: {pattern: "[0-9]"}}',
            data=rows("a1b", "2"),
            good=True,
        ),
        Case(
            name="pattern and a line feed",
            properties=column + 'logicalTypeOptions: {pattern: "^[A-Z]{3}$"}}',
            data=rows("ABC", "ABC\n"),
            good=False,
        ),
        Case(name="listed", properties=listed, data=rows("a", "b", None), good=True),
        Case(name="not listed", properties=listed, data=rows("a", "c"), good=False),
        Case(name="listed, other case", properties=listed, data=rows("a", "A"), good=False),
        Case(
            name="enum",
            properties=column + "enum: [{value: a}, {value: b}]}",
            data=rows("a", "b"),
            good=True,
            api="v3.2.0",
        ),
        Case(
            name="enum, not listed",
            properties=column + "enum: [{value: a}, {value: b}]}",
            data=rows("a", "c"),
            good=False,
            api="v3.2.0",
        ),
        Case(name="no word for missing", properties=missing, data=rows("a"), good=True),
        Case(name="a word for missing", properties=missing, data=rows("a", "N/A"), good=False),
        Case(name="pattern as quality", properties=valid + 'pattern: "^[a-z]$"}}', data=rows("a", "1"), good=False),
    ]


def number_cases() -> list[Case]:
    """Rules of numbers."""

    def column(rule: str, kind: str = "number") -> str:
        return f"- {{name: n, logicalType: {kind}, logicalTypeOptions: {{{rule}}}}}"

    def rows(*values: float | None) -> pl.DataFrame:
        return pl.DataFrame({"n": list(values)}, schema={"n": pl.Float64()})

    def whole(*values: int | None) -> pl.DataFrame:
        return pl.DataFrame({"n": list(values)}, schema={"n": pl.Int64()})

    return [
        Case(name="range", properties=column("minimum: 0, maximum: 10"), data=rows(0.0, 10.0, None), good=True),
        Case(name="below", properties=column("minimum: 0"), data=rows(1.0, -0.001), good=False),
        Case(name="above", properties=column("maximum: 10"), data=rows(1.0, 10.001), good=False),
        Case(
            name="open range",
            properties=column("exclusiveMinimum: 0, exclusiveMaximum: 10"),
            data=rows(0.001, 9.999),
            good=True,
            declared="it cannot check a column with two open ends: both become a check of one name",
        ),
        Case(name="at the open lower end", properties=column("exclusiveMinimum: 0"), data=rows(1.0, 0.0), good=False),
        Case(name="at the open upper end", properties=column("exclusiveMaximum: 10"), data=rows(1.0, 10.0), good=False),
        Case(
            name="whole numbers",
            properties=column("minimum: 1, maximum: 3", "integer"),
            data=whole(1, 3, None),
            good=True,
        ),
        Case(name="whole number below", properties=column("minimum: 1", "integer"), data=whole(1, 0), good=False),
        Case(
            name="large whole number",
            properties=column("maximum: 9007199254740993", "integer"),
            data=whole(2**53 + 1),
            good=True,
            declared="it reads the whole numbers of a Parquet file as 32 bits, whatever the file has",
        ),
        Case(name="not a number above", properties=column("maximum: 10"), data=rows(1.0, float("nan")), good=False),
        Case(name="not a number below", properties=column("minimum: 0"), data=rows(1.0, float("nan")), good=False),
        Case(name="infinite", properties=column("maximum: 10"), data=rows(1.0, float("inf")), good=False),
    ]


def time_cases() -> list[Case]:
    """Rules of times, and how fresh data is; the data is as old as it says at the moment of the call."""
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)

    def rows(*values: dt.datetime | None) -> pl.DataFrame:
        return pl.DataFrame({"at": list(values)}, schema={"at": pl.Datetime("us", "UTC")})

    def days(*values: dt.date) -> pl.DataFrame:
        return pl.DataFrame({"day": list(values)})

    def old(**length: float) -> pl.DataFrame:
        return rows(now - dt.timedelta(days=90), now - dt.timedelta(**length))

    since = '- {name: at, logicalType: timestamp, logicalTypeOptions: {minimum: "2018-01-01T00:00:00Z"}}'
    until = '- {name: day, logicalType: date, logicalTypeOptions: {maximum: "2018-12-31"}}'
    fresh = "- {property: freshness, value: 2, unit: d, element: rows.at}"
    utc = dt.UTC
    return [
        Case(name="time", properties=since, data=rows(dt.datetime(2018, 1, 1, tzinfo=utc)), good=True),
        Case(
            name="time too early",
            properties=since,
            data=rows(dt.datetime(2017, 12, 31, 23, 59, 59, tzinfo=utc)),
            good=False,
        ),
        Case(name="day", properties=until, data=days(dt.date(2018, 12, 31)), good=True),
        Case(name="day too late", properties=until, data=days(dt.date(2019, 1, 1)), good=False),
        Case(name="fresh", properties=TIME, promises=fresh, data=old(hours=40), good=True),
        Case(name="stale", properties=TIME, promises=fresh, data=old(hours=50), good=False),
        Case(
            name="fresh, in hours",
            properties=TIME,
            promises=fresh.replace("2, unit: d", "3, unit: h"),
            data=old(hours=2),
            good=True,
        ),
        Case(
            name="stale, in hours",
            properties=TIME,
            promises=fresh.replace("2, unit: d", "3, unit: h"),
            data=old(hours=4),
            good=False,
        ),
        Case(
            name="in the future and stale",
            properties=TIME,
            promises=fresh,
            data=rows(now + dt.timedelta(days=9), now - dt.timedelta(days=9)),
            good=False,
            declared="it takes a time in the future for the newest row, so one wrong clock makes stale data fresh",
        ),
    ]


def table_cases() -> list[Case]:
    """Keys, counts, shares, and whole columns."""
    two = "- {name: a, logicalType: string}\n- {name: b, logicalType: integer}"
    key = two.replace("string", "string, primaryKey: true, primaryKeyPosition: 1")
    pair = key.replace("integer", "integer, primaryKey: true, primaryKeyPosition: 2")
    unique = two.replace("string", "string, unique: true")

    def rows(*values: tuple[str | None, int | None]) -> pl.DataFrame:
        return pl.DataFrame(list(values), schema={"a": pl.String(), "b": pl.Int64()}, orient="row")

    def counted(rule: str) -> str:
        return f"quality:\n  - {{metric: rowCount, {rule}}}"

    def share(rule: str) -> str:
        return two.replace(
            "{name: b, logicalType: integer}",
            f"name: b\n  logicalType: integer\n  quality:\n    - {{metric: nullValues, {rule}}}",
        )

    together = "quality:\n  - {metric: duplicateValues, mustBe: 0, arguments: {properties: [a, b]}}"
    three = rows(("x", 1), ("y", 2), ("z", None))
    return [
        Case(name="key", properties=key, data=rows(("x", 1), ("y", 1)), good=True),
        Case(name="key twice", properties=key, data=rows(("x", 1), ("x", 2)), good=False),
        Case(name="key null", properties=key, data=rows(("x", 1), (None, 2)), good=False),
        Case(name="key of two", properties=pair, data=rows(("x", 1), ("x", 2)), good=True),
        Case(name="key of two twice", properties=pair, data=rows(("x", 1), ("x", 1)), good=False),
        Case(name="unique", properties=unique, data=rows(("x", 1), ("y", 1)), good=True),
        Case(name="unique twice", properties=unique, data=rows(("x", 1), ("x", 1)), good=False),
        Case(name="unique and nulls", properties=unique, data=rows((None, 1), (None, 1)), good=True),
        Case(name="unique together", properties=two, table=together, data=rows(("x", 1), ("x", 2)), good=True),
        Case(name="together twice", properties=two, table=together, data=rows(("x", 1), ("x", 1)), good=False),
        Case(name="rows", properties=two, table=counted("mustBeBetween: [3, 5]"), data=three, good=True),
        Case(name="too few rows", properties=two, table=counted("mustBeGreaterThan: 3"), data=three, good=False),
        Case(name="too many rows", properties=two, table=counted("mustBeLessThan: 3"), data=three, good=False),
        Case(name="no rows", properties=two, data=rows(), good=True),
        Case(
            name="no rows, one wanted", properties=two, table=counted("mustBeGreaterThan: 0"), data=rows(), good=False
        ),
        Case(name="few nulls", properties=share("mustBeLessOrEqualTo: 34, unit: percent"), data=three, good=True),
        Case(name="many nulls", properties=share("mustBeLessThan: 33, unit: percent"), data=three, good=False),
        Case(name="nulls counted", properties=share("mustBeLessThan: 2"), data=three, good=True),
        Case(name="too many nulls", properties=share("mustBeLessThan: 1"), data=three, good=False),
        Case(name="column missing", properties=two, data=three.drop("b"), good=False),
        Case(name="column besides", properties=two, data=three.with_columns(c=pl.lit(1)), good=True),
        Case(name="other order of columns", properties=two, data=three.select("b", "a"), good=True),
    ]


def type_cases() -> list[Case]:
    """Values that cannot be read as their type."""

    def column(kind: str) -> str:
        return f"- {{name: v, logicalType: {kind}}}"

    def texts(*values: str | None) -> pl.DataFrame:
        return pl.DataFrame({"v": list(values)}, schema={"v": pl.String()})

    return [
        Case(name="number as text", properties=column("number"), data=texts("1.5", "2", None), good=True, text=True),
        Case(name="word as number", properties=column("number"), data=texts("1.5", "2", "two"), good=False, text=True),
        Case(
            name="fraction as whole number",
            properties=column("integer"),
            data=texts("1", "2", "2.5"),
            good=False,
            text=True,
            declared="it rounds fractions in a CSV file of whole numbers, and says nothing",
        ),
        Case(
            name="time as text",
            properties=column("timestamp"),
            data=texts("2018-04-01T10:00:00Z", "2018-04-01T11:00:00Z"),
            good=True,
            text=True,
        ),
        Case(
            name="word as time",
            properties=column("timestamp"),
            data=texts("2018-04-01T10:00:00Z", "2018-04-01T10:00:00Z", "noon"),
            good=False,
            text=True,
        ),
        Case(
            name="day that is none",
            properties=column("date"),
            data=texts("2018-02-28", "2018-02-27", "2018-02-30"),
            good=False,
            text=True,
        ),
        Case(name="flag as text", properties=column("boolean"), data=texts("true", "false"), good=True, text=True),
        Case(
            name="word as flag",
            properties=column("boolean"),
            data=texts("true", "false", "perhaps"),
            good=False,
            text=True,
        ),
        Case(name="text column for numbers", properties=column("number"), data=texts("a", "b"), good=False),
        Case(name="numbers for a time", properties=column("timestamp"), data=pl.DataFrame({"v": [1.5]}), good=False),
    ]


def cases() -> list[Case]:
    """All cases; their names are unique."""
    return [*text_cases(), *number_cases(), *time_cases(), *table_cases(), *type_cases()]
