"""The rules of a contract, and the words in which each of them is stated, for a table and for one request alike.

A null breaks `required` and nothing else: it is in no range, in no list and in no relation, and breaks none. A value
that cannot be read as its type breaks `type` and nothing else; a NaN or an infinity breaks `finite` and nothing else.
All other rules see only values that passed these; to a condition in SQL the others are null, which is unknown.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from vitok.clock import isoformat
from vitok.errors import InvalidInput

LogicalType = Literal["string", "number", "integer", "boolean", "timestamp", "date"]
LOGICAL_TYPES: tuple[LogicalType, ...] = get_args(LogicalType)
Severity = Literal["block", "quarantine", "warn"]
Bound = int | float | str | bool | tuple["Bound | None", ...] | None

TYPE_WORDS: dict[str, str] = {
    "string": "be text",
    "number": "be a number",
    "integer": "be a whole number of 64 bits",
    "boolean": "be true or false",
    "timestamp": "be an ISO 8601 time such as 2018-08-08T12:00:00Z",
    "date": "be an ISO 8601 date such as 2018-08-08",
}
_RANGE_WORDS = {
    "minimum": "be at least {}",
    "exclusiveMinimum": "be greater than {}",
    "maximum": "be at most {}",
    "exclusiveMaximum": "be less than {}",
    "minLength": "have a length of at least {}",
    "maxLength": "have a length of at most {}",
    "pattern": "match {}",
}
# ODCS leaves the words of `severity` open and gives the first three as examples.
_SEVERITIES: dict[str, Severity] = {
    "info": "warn",
    "warning": "warn",
    "error": "block",
    "block": "block",
    "quarantine": "quarantine",
    "warn": "warn",
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What each value of one field must be.

    Attributes:
        field: Name of the field; of a rule over several fields, their names joined by commas.
        name: Name of the rule as ODCS spells it, such as `"minimum"`; also `"type"`, `"finite"`, `"unique"`,
            `"relationship"` and `"sql"`.
        wanted: The rule as a phrase that follows "must".
        severity: What happens to data that breaks it: `block` stops the run, `quarantine` takes the row out, `warn`
            only reports it.
        bound: What the values are compared with; times as microseconds, dates as days since 1970-01-01.

    Example:
        >>> print(rule("amount", "minimum", 0))
        amount.minimum: amount must be at least 0
    """

    field: str
    name: str
    wanted: str
    severity: Severity = "quarantine"
    bound: Bound = None

    @property
    def label(self) -> str:
        """Field and rule in one word, such as `"amount.minimum"`."""
        return f"{self.field}.{self.name}"

    def __str__(self) -> str:
        return f"{self.label}: {self.field} must {self.wanted}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a counted number must be: one of the operators of ODCS.

    Example:
        >>> print(Comparison(operator="mustBeBetween", low=100, high=120))
        be between 100 and 120
        >>> Comparison(operator="mustBeGreaterThan", low=0).holds(0)
        False
    """

    operator: str
    low: float
    high: float = 0

    def holds(self, value: float) -> bool:
        """Says whether a count satisfies the operator; the ends of a range belong to it."""
        match self.operator:
            case "mustBe":
                return value == self.low
            case "mustNotBe":
                return value != self.low
            case "mustBeGreaterThan":
                return value > self.low
            case "mustBeGreaterOrEqualTo":
                return value >= self.low
            case "mustBeLessThan":
                return value < self.low
            case "mustBeLessOrEqualTo":
                return value <= self.low
            case "mustBeBetween":
                return self.low <= value <= self.high
            case _:
                return not self.low <= value <= self.high

    def attainable(self, value: float) -> bool:
        """Says whether a number that may still grow from `value` can come to satisfy the operator.

        Example:
            >>> small = Comparison(operator="mustBeBetween", low=100, high=120)
            >>> small.attainable(3), small.attainable(121)
            (True, False)
        """
        match self.operator:
            case "mustBe" | "mustBeLessOrEqualTo":
                return value <= self.low
            case "mustBeLessThan":
                return value < self.low
            case "mustBeBetween":
                return value <= self.high
            case _:
                return True

    def __str__(self) -> str:
        return _OPERATOR_WORDS[self.operator].format(self.low, self.high)


_OPERATOR_WORDS = {
    "mustBe": "be {}",
    "mustNotBe": "not be {}",
    "mustBeGreaterThan": "be greater than {}",
    "mustBeGreaterOrEqualTo": "be at least {}",
    "mustBeLessThan": "be less than {}",
    "mustBeLessOrEqualTo": "be at most {}",
    "mustBeBetween": "be between {} and {}",
    "mustNotBeBetween": "not be between {} and {}",
}
OPERATORS = tuple(_OPERATOR_WORDS)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number counted over the whole table and compared; it takes no row out.

    Attributes:
        name: Metric of ODCS: `rowCount`, `nullValues`, `missingValues`, `invalidValues` or `duplicateValues`.
        fields: The fields it counts in; none for `rowCount`.
        comparison: What the number must be.
        percent: True where the number is a share in percent: of the rows, or of the rows expected for `rowCount`.
        severity: `warn` or `block`.
        rules: For `missingValues` and `invalidValues`: what a counted value breaks.
    """

    name: str
    fields: tuple[str, ...]
    comparison: Comparison
    percent: bool
    severity: Severity
    rules: tuple[Rule, ...] = ()

    @property
    def wanted(self) -> str:
        """The metric as a phrase that follows "must"."""
        return f"{self.comparison}{' percent' if self.percent else ' rows'}"


def rule(
    field: str, name: str, bound: Bound = None, *, logical_type: str = "string", severity: Severity = "quarantine"
) -> Rule:
    """Makes a rule with its words."""
    match name:
        case "required":
            wanted = "be given and not null"
        case "type":
            wanted = TYPE_WORDS[logical_type]
        case "finite":
            wanted = "be a finite number, not NaN and not infinite"
        case "unique":
            wanted = "be unique; the first row with it is kept"
        case "validValues" | "missingValues":
            listed = bound if isinstance(bound, tuple) else ()
            shown = ", ".join("null" if item is None else _shown(item, logical_type) for item in listed[:12])
            more = f" and {len(listed) - 12} more" if len(listed) > 12 else ""
            wanted = ("be one of " if name == "validValues" else "be none of ") + shown + more
        case "pattern":
            wanted = _RANGE_WORDS[name].format(bound)
        case "relationship":
            wanted = f"be there in {bound}"
        case "sql":
            wanted = f"not have {bound}"
        case _:
            wanted = _RANGE_WORDS[name].format(_shown(bound, logical_type))
    return Rule(field=field, name=name, wanted=wanted, severity=severity, bound=bound)


def _shown(bound: Bound, logical_type: str) -> str:
    if logical_type == "timestamp" and isinstance(bound, int):
        return isoformat(bound)
    if logical_type == "date" and isinstance(bound, int):
        return isoformat(bound * 86_400_000_000)[:10]
    return repr(bound)


def severity_of(value: object, where: str) -> Severity:
    """Reads a severity.

    Raises:
        InvalidInput: If the word is not known.

    Example:
        >>> severity_of("warning", "severity")
        'warn'
    """
    found = _SEVERITIES.get(value.lower()) if isinstance(value, str) else None
    if found is None:
        raise InvalidInput(where, value, f"be one of {', '.join(_SEVERITIES)}")
    return found


def patterns(pattern: str, where: str) -> tuple[str, str]:
    r"""Writes a pattern of ECMA-262, the dialect of ODCS, for the two engines that run it: Rust's and Python's.

    Both then read `\d` and `\w` as ASCII and `$` as the very end, as ECMA-262 does, so that a table and a request
    are judged alike.

    Raises:
        InvalidInput: If one of the engines cannot run it, such as a lookahead.

    Example:
        >>> patterns(r"^\d+$", "pattern")
        ('^[0-9]+$', '^[0-9]+\\Z')
    """
    common: list[str] = []
    python: list[str] = []
    in_class = False
    for part in re.findall(r"\\.|.", pattern, flags=re.DOTALL):
        plain = _ASCII_CLASSES.get(part)
        if plain is not None and (not in_class or part.islower()):
            part = plain[1:-1] if in_class else plain
        if part == "[" and not in_class:
            in_class = True
        elif part == "]" and in_class:
            in_class = False
        common.append(part)
        python.append(r"\Z" if part == "$" and not in_class else part)
    rust_text, python_text = "".join(common), "".join(python)
    import polars as pl

    try:
        re.compile(python_text)
        pl.Series([""]).str.contains(rust_text)
    except (re.error, pl.exceptions.PolarsError) as error:
        problem = str(error).strip().splitlines()[-1]
        fix = "Lookarounds, back references and named groups are not supported"
        raise InvalidInput(where, pattern, f"be a regular expression that can be run here ({problem})", fix) from None
    return rust_text, python_text


_ASCII_CLASSES = {r"\d": "[0-9]", r"\w": "[0-9A-Za-z_]", r"\D": "[^0-9]", r"\W": "[^0-9A-Za-z_]"}
