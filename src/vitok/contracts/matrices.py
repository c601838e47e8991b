"""Checks the rows of a matrix of numbers against a table, in the same words as `Contract.row_checker`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitok.contracts import matrix_kernels
from vitok.contracts.contract import Field, Table
from vitok.contracts.rows import Violation, compile_checker
from vitok.errors import InvalidInput

_BOUNDS = {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"}
_COVERED = _BOUNDS | {"required", "type", "finite", "unique"}
_LARGEST = float(np.finfo(np.float64).max)


class MatrixChecker:
    """Checks rows of a matrix, some nanoseconds a value where nothing is wrong; made by `Contract.matrix_checker`.

    A NaN is a value that is missing, a null. Ranges, required values, finite numbers and whole numbers are looked at
    by a compiled loop; only a row that it finds, or every row where the table has other rules for these columns, is
    checked again by the function that checks one request, whose words are returned.

    Args:
        table: The table.
        names: Fields of the columns, in order; the table's other fields are not looked at.

    Raises:
        InvalidInput: If a column is no field of the table, or its type is neither `number`, `integer` nor `boolean`.
    """

    def __init__(self, table: Table, names: Sequence[str]) -> None:
        fields = {field.name: field for field in table.fields}
        unknown = [name for name in names if name not in fields]
        if unknown:
            raise InvalidInput("names", unknown[0], f"be a field of {table.name}: {', '.join(fields)}")
        chosen = [fields[name] for name in names]
        for field in chosen:
            if field.logical_type not in ("number", "integer", "boolean"):
                raise InvalidInput("names", field.name, f"be a number in a matrix; it is a {field.logical_type}")
        self.names = tuple(names)
        self._kinds = [field.logical_type for field in chosen]
        self._low = np.array([_low(field) for field in chosen])
        self._high = np.array([_high(field) for field in chosen])
        self._flags = np.array([_flags(field) for field in chosen], np.int64)
        conditions = tuple(item for item in table.conditions if set(item.rule.field.split(",")) <= set(names))
        own = Table(name=table.name, fields=tuple(chosen), conditions=conditions)
        self._check = compile_checker(own)
        self._all = bool(conditions) or any(
            rule.name not in _COVERED and rule.severity != "warn" for field in chosen for rule in field.rules
        )

    def __call__(self, X: NDArray[np.float64]) -> list[tuple[int, Violation]]:
        """Checks rows.

        Args:
            X: Shape (n, number of names), float64; NaN where a value is missing.

        Returns:
            Place of the row and what it breaks, in order; empty where all is good.

        Raises:
            InvalidInput: If the shape is another.
        """
        if X.ndim != 2 or X.shape[1] != len(self.names):
            raise InvalidInput("X", X.shape, f"have the shape (n, {len(self.names)})")
        places = np.arange(len(X))
        if not self._all:
            n = matrix_kernels.suspects(X, self._low, self._high, self._flags, places)
            if not n:
                return []
            places = places[:n]
        return [(place, violation) for place in places.tolist() for violation in self._check(self._row(X[place]))]

    def _row(self, values: NDArray[np.float64]) -> dict[str, Any]:
        return {
            name: _value(kind, value)
            for name, kind, value in zip(self.names, self._kinds, values.tolist(), strict=True)
        }


def _value(kind: str, value: float) -> float | int | bool | None:
    if value != value:
        return None
    if kind == "boolean" and value in (0.0, 1.0):
        return bool(value)
    if kind == "integer" and value % 1 == 0:
        return int(value)
    return value


def _bound(field: Field, name: str) -> float | None:
    for rule in field.rules:
        if rule.name == name and rule.severity != "warn" and isinstance(rule.bound, int | float):
            return float(rule.bound)
    return None


def _low(field: Field) -> float:
    least, above = _bound(field, "minimum"), _bound(field, "exclusiveMinimum")
    found = [-_LARGEST if field.logical_type != "boolean" else 0.0]
    found += [least] if least is not None else []
    found += [float(np.nextafter(above, np.inf))] if above is not None else []
    return max(found)


def _high(field: Field) -> float:
    most, below = _bound(field, "maximum"), _bound(field, "exclusiveMaximum")
    found = [_LARGEST if field.logical_type != "boolean" else 1.0]
    found += [most] if most is not None else []
    found += [float(np.nextafter(below, -np.inf))] if below is not None else []
    return min(found)


def _flags(field: Field) -> int:
    strict = {rule.name for rule in field.rules if rule.severity != "warn"}
    flags = matrix_kernels.NEEDED if "required" in strict else 0
    flags |= matrix_kernels.FINITE if "finite" in strict else 0
    return flags | (matrix_kernels.WHOLE if field.logical_type in ("integer", "boolean") else 0)
