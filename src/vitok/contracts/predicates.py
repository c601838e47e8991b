"""Reads conditions on one row, written in SQL, and runs them on columns and on single requests alike.

What is read is the part of SQL that both can run with the same result: comparisons, `AND`, `OR`, `NOT`, `IS NULL`,
`IN`, `BETWEEN`, `LIKE`, `+ - * /`, `ABS`, `LENGTH`, `COALESCE`, numbers, texts, and dates and times as texts. Null
means unknown, as SQL has it. Arithmetic is that of float64; what it cannot express (a division by zero, a sum beyond
the largest float) is unknown.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitok.clock import DAY
from vitok.contracts.readers import READERS, UNREADABLE
from vitok.contracts.rules import LogicalType

if TYPE_CHECKING:
    import polars as pl

Known = Mapping[str, Any]
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
    r"|(?P<text>'(?:[^']|'')*')|(?P<quoted>\"(?:[^\"]|\"\")+\")|(?P<name>[^\W\d]\w*)"
    r"|(?P<sign><=|>=|<>|!=|[-+*/()=<>,.]))"
)
_WORDS = frozenset(["AND", "OR", "NOT", "IS", "NULL", "IN", "BETWEEN", "LIKE", "TRUE", "FALSE", "DATE", "TIMESTAMP"])
_NUMERIC = frozenset({"integer", "number"})
_DEEPEST = 40


class UnsupportedError(Exception):
    """A condition that this room cannot run; the message says which part."""


@dataclass(frozen=True)
class Node:
    """A part of a condition: its type and how it is run.

    Attributes:
        kind: A logical type of ODCS, or "null".
        column: From the columns of a table (times as microseconds, dates as days) to its column.
        value: From the values of one row to its value; None is unknown.
        constant: The value where it is written in the condition itself.
        fields: Names of the columns it looks at.
    """

    kind: str
    column: "Callable[[Mapping[str, pl.Expr]], pl.Expr]"
    value: Callable[[Known], Any]
    constant: Any = None
    fields: tuple[str, ...] = ()


def parse(text: str, types: Mapping[str, str]) -> Node:
    """Reads a condition.

    Args:
        text: Such as `delivered_at < ordered_at OR amount < fee`.
        types: Logical types of the columns, by name.

    Returns:
        The condition, of kind boolean.

    Raises:
        UnsupportedError: If it is not a condition on these columns that can be run here.

    Example:
        >>> node = parse("amount < fee", {"amount": "number", "fee": "number"})
        >>> node.fields, node.value({"amount": 1.0, "fee": 2.0}), node.value({"amount": None, "fee": 2.0})
        (('amount', 'fee'), True, None)
    """
    reader = _Reader(_tokens(text), types)
    node = _boolean(reader.either())
    if reader.here != ("end", ""):
        raise UnsupportedError(f"{reader.here[1]!r} is not expected there")
    return node


def _tokens(text: str) -> list[tuple[str, str]]:
    found = []
    text = text.strip().removesuffix(";").rstrip()
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None or match.end() == place:
            raise UnsupportedError(f"{text[place : place + 20]!r} cannot be read")
        place = match.end()
        kind = str(match.lastgroup)
        word = match[kind]
        if kind == "name" and word.upper() in _WORDS:
            kind, word = "word", word.upper()
        found.append((kind, word))
    return [*found, ("end", "")]


class _Reader:
    """Reads from left to right; each method reads one level of precedence, the loosest first."""

    def __init__(self, tokens: list[tuple[str, str]], types: Mapping[str, str]) -> None:
        self._tokens = tokens
        self._types = types
        self._place = 0
        self._depth = 0

    @property
    def here(self) -> tuple[str, str]:
        return self._tokens[self._place]

    def _take(self, *wanted: str) -> str:
        kind, word = self.here
        if kind in {"word", "sign"} and word in wanted:
            self._place += 1
            return word
        return ""

    def _need(self, wanted: str) -> None:
        if not self._take(wanted):
            raise UnsupportedError(f"{wanted} is expected where {self.here[1] or 'it ends'!r} stands")

    def either(self) -> Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise UnsupportedError(f"it is nested deeper than {_DEEPEST} levels")
        node = self._both()
        while self._take("OR"):
            node = _or(_boolean(node), _boolean(self._both()))
        self._depth -= 1
        return node

    def _both(self) -> Node:
        node = self._negated()
        while self._take("AND"):
            node = _and(_boolean(node), _boolean(self._negated()))
        return node

    def _negated(self) -> Node:
        turns = 0
        while self._take("NOT"):
            turns += 1
        node = self._compared()
        return _not(_boolean(node)) if turns % 2 else _boolean(node) if turns else node

    def _compared(self) -> Node:
        left = self._sum()
        sign = self._take("=", "<>", "!=", "<", "<=", ">", ">=")
        if sign:
            return _compare(sign, left, self._sum())
        if self._take("IS"):
            negated = bool(self._take("NOT"))
            self._need("NULL")
            node = _is_null(left)
            return _not(node) if negated else node
        negated = bool(self._take("NOT"))
        if self._take("BETWEEN"):
            low = self._sum()
            self._need("AND")
            node = _and(_compare(">=", left, low), _compare("<=", left, self._sum()))
        elif self._take("IN"):
            self._need("(")
            node = _compare("=", left, self._sum())
            while self._take(","):
                node = _or(node, _compare("=", left, self._sum()))
            self._need(")")
        elif self._take("LIKE"):
            node = _like(left, self._sum())
        elif negated:
            raise UnsupportedError(f"BETWEEN, IN or LIKE is expected where {self.here[1] or 'it ends'!r} stands")
        else:
            return left
        return _not(node) if negated else node

    def _sum(self) -> Node:
        node = self._product()
        while sign := self._take("+", "-"):
            node = _arithmetic(sign, node, self._product())
        return node

    def _product(self) -> Node:
        node = self._signed()
        while sign := self._take("*", "/"):
            node = _arithmetic(sign, node, self._signed())
        return node

    def _signed(self) -> Node:
        negative = False
        while sign := self._take("+", "-"):
            negative ^= sign == "-"
        node = self._atom()
        if not negative:
            return node
        if node.constant is not None and node.kind in _NUMERIC:
            return _literal(node.kind, -node.constant)
        return _arithmetic("-", _literal("number", 0.0), node)

    def _atom(self) -> Node:
        kind, word = self.here
        if self._take("("):
            node = self.either()
            self._need(")")
            return node
        self._place += kind != "end"
        match kind, word:
            case "number", _:
                whole = word.isdigit() and int(word) < 2**63
                return _literal("integer", int(word)) if whole else _literal("number", float(word))
            case "text", _:
                return _literal("string", word[1:-1].replace("''", "'"))
            case "word", "TRUE" | "FALSE":
                return _literal("boolean", word == "TRUE")
            case "word", "NULL":
                return Node("null", lambda _: _none(), lambda _: None)
            case "word", "DATE" | "TIMESTAMP":
                kind, text = self.here
                if kind != "text":
                    raise UnsupportedError(f"{word} is not followed by a text")
                self._place += 1
                return _moment(_literal("string", text[1:-1]), word.lower())
            case "name", _ if self.here == ("sign", "("):
                return self._call(word.upper())
            case (("name" | "quoted"), _):
                return self._named(word if kind == "name" else word[1:-1].replace('""', '"'))
        raise UnsupportedError(f"{word or 'the end'!r} is not expected there")

    def _named(self, name: str) -> Node:
        if self._take("."):
            # What stands before the point is the table.
            kind, word = self.here
            if kind not in {"name", "quoted"}:
                raise UnsupportedError(f"{word!r} is not the name of a column")
            self._place += 1
            name = word if kind == "name" else word[1:-1].replace('""', '"')
        known = name if name in self._types else {item.lower(): item for item in self._types}.get(name.lower())
        if known is None:
            raise UnsupportedError(f"{name!r} is not a column of the table")
        return Node(self._types[known], lambda columns: columns[known], lambda values: values[known], fields=(known,))

    def _call(self, name: str) -> Node:
        self._need("(")
        given = [self.either()]
        while self._take(","):
            given.append(self.either())
        self._need(")")
        if name == "COALESCE":
            return _first_known(given)
        one = given[0]
        if name == "ABS" and len(given) == 1 and one.kind in _NUMERIC:
            return _number(one, lambda column: column.abs(), abs)
        if name == "LENGTH" and len(given) == 1 and one.kind == "string":
            return Node(
                "integer",
                lambda columns: one.column(columns).str.len_chars().cast(_int64()),
                lambda values: None if (text := one.value(values)) is None else len(text),
                fields=one.fields,
            )
        raise UnsupportedError(f"{name} of {', '.join(item.kind for item in given)} is not known here")


def _int64() -> Any:
    import polars as pl

    return pl.Int64


def _none() -> "pl.Expr":
    import polars as pl

    return pl.lit(None)


def _literal(kind: str, value: Any) -> Node:
    import polars as pl

    return Node(kind, lambda _: pl.lit(value), lambda _: value, constant=value)


def _fields(*nodes: Node) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for node in nodes for name in node.fields))


def _boolean(node: Node) -> Node:
    import polars as pl

    if node.kind == "null":
        return Node("boolean", lambda _: pl.lit(None, pl.Boolean), lambda _: None)
    if node.kind != "boolean":
        raise UnsupportedError(f"a {node.kind} stands where a condition is expected")
    return node


def _and(one: Node, two: Node) -> Node:
    def value(values: Known) -> bool | None:
        left = one.value(values)
        if left is False:
            return False
        right = two.value(values)
        return right if left or right is False else None

    return Node("boolean", lambda columns: one.column(columns) & two.column(columns), value, fields=_fields(one, two))


def _or(one: Node, two: Node) -> Node:
    def value(values: Known) -> bool | None:
        left = one.value(values)
        if left is True:
            return True
        right = two.value(values)
        return right if left is False or right is True else None

    return Node("boolean", lambda columns: one.column(columns) | two.column(columns), value, fields=_fields(one, two))


def _not(node: Node) -> Node:
    def value(values: Known) -> bool | None:
        found = node.value(values)
        return None if found is None else not found

    return Node("boolean", lambda columns: ~node.column(columns), value, fields=node.fields)


def _is_null(node: Node) -> Node:
    return Node(
        "boolean",
        lambda columns: node.column(columns).is_null(),
        lambda values: node.value(values) is None,
        fields=node.fields,
    )


def _float(node: Node) -> Node:
    import polars as pl

    if node.kind == "number":
        return node
    return _number(node, lambda column: column.cast(pl.Float64), float)


def _number(node: Node, column: "Callable[[pl.Expr], pl.Expr]", value: Callable[[Any], Any]) -> Node:
    import polars as pl

    return Node(
        "number",
        lambda columns: column(node.column(columns).cast(pl.Float64)),
        lambda values: None if (found := node.value(values)) is None else value(float(found)),
        fields=node.fields,
    )


def _arithmetic(sign: str, one: Node, two: Node) -> Node:
    if one.kind not in _NUMERIC or two.kind not in _NUMERIC:
        raise UnsupportedError(f"{one.kind} {sign} {two.kind} is not known here")
    import polars as pl

    left, right = _float(one), _float(two)
    run: dict[str, Callable[[Any, Any], Any]] = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
        "/": lambda a, b: a / b,
    }
    apply = run[sign]

    def column(columns: "Mapping[str, pl.Expr]") -> "pl.Expr":
        found = apply(left.column(columns), right.column(columns))
        return pl.when(found.is_finite()).then(found)

    def value(values: Known) -> float | None:
        a, b = left.value(values), right.value(values)
        if a is None or b is None or (sign == "/" and b == 0):
            return None
        found = apply(a, b)
        return found if math.isfinite(found) else None

    return Node("number", column, value, fields=_fields(one, two))


def _moment(node: Node, kind: str) -> Node:
    logical: LogicalType = "date" if kind == "date" else "timestamp"
    found = READERS[logical](node.constant)
    if found is UNREADABLE:
        raise UnsupportedError(f"{node.constant!r} is not a {logical}")
    return _literal(logical, found)


def _alike(one: Node, two: Node) -> tuple[Node, Node]:
    """Brings two values to one type: numbers to floats, texts beside times to times, dates beside times to times."""
    kinds = {one.kind, two.kind}
    if "null" in kinds or len(kinds) == 1:
        return one, two
    if kinds <= _NUMERIC:
        return _float(one), _float(two)
    for text, other in ((one, two), (two, one)):
        if text.kind == "string" and isinstance(text.constant, str) and other.kind in {"timestamp", "date"}:
            # A date may be compared with a moment of a day.
            fits = READERS["date"](text.constant) is not UNREADABLE
            read = _moment(text, "date" if other.kind == "date" and fits else "timestamp")
            return _alike(read, two) if text is one else _alike(one, read)
    if kinds == {"date", "timestamp"}:
        return _as_time(one), _as_time(two)
    raise UnsupportedError(f"{one.kind} and {two.kind} cannot be compared")


def _as_time(node: Node) -> Node:
    if node.kind == "timestamp":
        return node
    return Node(
        "timestamp",
        lambda columns: node.column(columns) * DAY,
        lambda values: None if (day := node.value(values)) is None else day * DAY,
        fields=node.fields,
    )


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": lambda a, b: a == b,
    "<>": lambda a, b: a != b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def _compare(sign: str, left: Node, right: Node) -> Node:
    one, two = _alike(left, right)
    fields = _fields(one, two)
    if "null" in {one.kind, two.kind}:
        return Node("boolean", _boolean(Node("null", lambda _: _none(), lambda _: None)).column, lambda _: None)
    apply = _COMPARE[sign]

    def value(values: Known) -> bool | None:
        a, b = one.value(values), two.value(values)
        return None if a is None or b is None else apply(a, b)

    return Node("boolean", lambda columns: apply(one.column(columns), two.column(columns)), value, fields=fields)


def _like(node: Node, pattern: Node) -> Node:
    if node.kind != "string" or not isinstance(pattern.constant, str) or pattern.kind != "string":
        raise UnsupportedError("LIKE is known here between a text column and a written pattern")
    if "\\" in pattern.constant:
        raise UnsupportedError("LIKE with an escape is not known here")
    parts = {"%": ".*", "_": "."}
    expression = "".join(parts.get(letter) or re.escape(letter) for letter in pattern.constant)
    fits = re.compile(expression, re.DOTALL).fullmatch

    def value(values: Known) -> bool | None:
        text = node.value(values)
        return None if text is None else fits(text) is not None

    return Node(
        "boolean",
        lambda columns: node.column(columns).str.contains(f"(?s)^{expression}$"),
        value,
        fields=node.fields,
    )


def _first_known(given: list[Node]) -> Node:
    kinds = {node.kind for node in given}
    if kinds == _NUMERIC:
        given = [_float(node) for node in given]
    elif len(kinds) != 1:
        raise UnsupportedError(f"COALESCE of {', '.join(sorted(kinds))} is not known here")
    import polars as pl

    def value(values: Known) -> Any:
        for node in given:
            found = node.value(values)
            if found is not None:
                return found
        return None

    return Node(
        given[0].kind,
        lambda columns: pl.coalesce(node.column(columns) for node in given),
        value,
        fields=_fields(*given),
    )
