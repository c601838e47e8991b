"""Bounds of a distribution: mean, spread, quantiles, shares, and how far the values have moved from a frozen histogram.

ODCS has no library metric for these, so they are written as `type: custom, engine: vitok`. They look at the values
that can be read and are finite, of the rows that keep all rules of single rows; only `psi` looks at the others too,
each kind in a bin of its own. They take no row out.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

from vitok.contracts import document as read
from vitok.contracts.bounds import allowed_values
from vitok.contracts.rules import OPERATORS, Bound, Comparison, Severity, severity_of
from vitok.errors import InvalidInput

if TYPE_CHECKING:
    import polars as pl

    from vitok.stats import Divergence

ENGINE: Final = "vitok"
_NUMERIC = ("integer", "number")
_OF_NUMBERS = frozenset({"mean", "stddev", "quantile", "ks"})
_KEYS: dict[str, tuple[str, ...]] = {
    "mean": (),
    "stddev": (),
    "quantile": ("q",),
    "share": ("values",),
    "distinctValues": (),
    "psi": ("edges", "values", "counts"),
    "ks": ("edges", "counts"),
}
_OTHERS = 1
# What is known of two parts does not say what it is of both.
WHOLE_ONLY: Final = frozenset({"quantile", "distinctValues"})


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that describes the values of one column, and what it must be.

    Attributes:
        field: The column.
        name: `mean`, `stddev`, `quantile`, `share` (percent), `distinctValues`, `psi` or `ks`.
        comparison: What the number must be.
        severity: `warn` or `block`.
        q: For `quantile`, in [0, 1].
        values: For `share` what is counted; for `psi` of words the words.
        edges: For `psi` and `ks` of numbers the cuts of the frozen histogram.
        counts: For `psi` and `ks` the counts of the reference: null, -inf, the cells, +inf for numbers; null, the
            words, all others for words.
    """

    field: str
    name: str
    comparison: Comparison
    severity: Severity = "warn"
    q: float = 0.5
    values: tuple[Bound, ...] = ()
    edges: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        """Name with what belongs to it, such as `"quantile(0.9)"`."""
        return f"quantile({self.q:g})" if self.name == "quantile" else self.name

    @property
    def wanted(self) -> str:
        """The bound as a phrase that follows "must"."""
        unit = " percent" if self.name == "share" else ""
        listed = f" for {', '.join(map(repr, self.values))}" if self.name == "share" else ""
        return f"{self.comparison}{unit}{listed}"


def measure(entry: Mapping[str, Any], where: str, column: str, logical_type: str) -> Measure:
    """Reads a custom quality entry whose engine is ours.

    Args:
        entry: The entry; its `implementation` is a mapping, or YAML of one.
        where: Its path in the contract, for messages.
        column: The property it stands under; "" is refused.
        logical_type: Type of the property.

    Raises:
        InvalidInput: If the metric or what belongs to it is not known.
    """
    inner = f"{where}.implementation"
    if not column:
        raise InvalidInput(where, entry.get("name"), "stand under the property it measures")
    text = entry.get("implementation")
    if isinstance(text, str):
        try:
            text = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InvalidInput(inner, text[:60], f"be YAML ({str(error).splitlines()[0]})") from None
    given = read.mapping(text, inner)
    name = given.get("metric")
    if name not in _KEYS:
        raise InvalidInput(f"{inner}.metric", name, f"be one of {', '.join(_KEYS)}")
    # Known keys first, so that a misspelt bound is told as such.
    allowed = ("metric", *_KEYS[name], *OPERATORS)
    for key in given:
        if key not in allowed:
            raise InvalidInput(inner, key, f"be one of {', '.join(allowed)}")
    if name in _OF_NUMBERS and logical_type not in _NUMERIC:
        raise InvalidInput(f"{inner}.metric", name, f"be of a number or an integer; {column} is a {logical_type}")
    comparison = comparison_of(given, inner)
    if comparison is None:
        raise InvalidInput(inner, name, f"come with one of {', '.join(OPERATORS)}")
    severity = severity_of(entry["severity"], f"{where}.severity") if entry.get("severity") is not None else "warn"
    if severity == "quarantine":
        raise InvalidInput(f"{where}.severity", severity, "be warn or block: it judges no single row")
    q = read.number(given.get("q", 0.5), f"{inner}.q")
    if not 0 <= q <= 1:
        raise InvalidInput(f"{inner}.q", q, "be between 0 and 1")
    listed = read.entries(given.get("values"), f"{inner}.values")
    values: tuple[Bound, ...] = ()
    if listed:
        bound = allowed_values(listed, f"{inner}.values", column, logical_type).bound
        values = bound if isinstance(bound, tuple) else ()
    elif name == "share":
        raise InvalidInput(f"{inner}.values", None, "list the values that are counted")
    edges = tuple(float(read.number(item, f"{inner}.edges")) for item in read.entries(given.get("edges"), inner))
    counts = tuple(float(read.number(item, f"{inner}.counts")) for item in read.entries(given.get("counts"), inner))
    if name in {"psi", "ks"}:
        _refuse_histogram(edges, values, counts, inner, logical_type)
    return Measure(
        field=column,
        name=name,
        comparison=comparison,
        severity=severity,
        q=float(q),
        values=values,
        edges=edges,
        counts=counts,
    )


def _refuse_histogram(
    edges: tuple[float, ...], values: tuple[Bound, ...], counts: tuple[float, ...], where: str, logical_type: str
) -> None:
    fix = "contracts.frozen_histogram writes it"
    if bool(edges) == bool(values):
        raise InvalidInput(where, {"edges": edges, "values": values}, "have either edges or values", fix)
    if edges and logical_type not in _NUMERIC:
        raise InvalidInput(f"{where}.edges", edges, "belong to a number or an integer", fix)
    if any(two <= one for one, two in itertools.pairwise(edges)):
        raise InvalidInput(f"{where}.edges", edges, "ascend", fix)
    wanted = len(edges) + 4 if edges else len(values) + 1 + _OTHERS
    if len(counts) != wanted or min(counts) < 0 or sum(counts) <= 0:
        rule = f"be {wanted} counts of at least 0, some above it"
        raise InvalidInput(f"{where}.counts", counts, rule, fix)


def comparison_of(entry: Mapping[str, Any], where: str) -> Comparison | None:
    """Reads the one operator of an entry, or None where there is none.

    Raises:
        InvalidInput: If there are several, or a bound is not a number.
    """
    given = [name for name in OPERATORS if name in entry]
    if len(given) > 1:
        raise InvalidInput(where, given, "have one operator only", "Write two entries")
    if not given:
        return None
    name, value = given[0], entry[given[0]]
    if name.endswith("Between"):
        pair = read.entries(value, f"{where}.{name}")
        if len(pair) != 2:
            raise InvalidInput(f"{where}.{name}", value, "be two numbers, the smaller first")
        low, high = (read.number(item, f"{where}.{name}") for item in pair)
        if low > high:
            raise InvalidInput(f"{where}.{name}", value, "be two numbers, the smaller first")
        return Comparison(operator=name, low=low, high=high)
    return Comparison(operator=name, low=read.number(value, f"{where}.{name}"))


def aggregates(item: Measure, known: "pl.Expr", rows: "pl.Expr", members: list[object]) -> "dict[str, pl.Expr]":
    """Writes what is counted in the one pass, by name.

    Args:
        item: The measure.
        known: The column in its type, null where a value cannot be read or is not finite.
        rows: True for the rows that are looked at.
        members: `item.values` in the type of the column.
    """
    import polars as pl

    value = known.filter(rows)
    counts = {"n": value.count()}
    match item.name:
        case "mean":
            return counts | {"seen": value.mean()}
        case "stddev":
            return counts | {"seen": value.std(), "mean": value.mean()}
        case "quantile":
            return counts | {"seen": value.quantile(item.q, "linear")}
        case "distinctValues":
            return counts | {"seen": value.drop_nulls().n_unique()}
        case "share":
            return counts | {"seen": value.is_in(members).sum()}
    if item.edges:
        number = value.cast(pl.Float64)
        return counts | {f"below_{index}": (number < edge).sum() for index, edge in enumerate(item.edges)}
    return counts | {f"is_{index}": value.eq(pl.lit(member)).sum() for index, member in enumerate(members)}


def special(value: "pl.Expr", rows: "pl.Expr") -> "dict[str, pl.Expr]":
    """Writes the counts of what has a bin of its own: all rows, and the infinities of a number."""
    number = value.filter(rows)
    return {"minus": number.eq(-math.inf).sum(), "plus": number.eq(math.inf).sum()}


def merged(item: Measure, one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any]:
    """Adds what was counted in two parts of the data, so that it says what would have been counted in both.

    Source: Chan, Golub & LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """
    if not one:
        return dict(two)
    n, m = one["n"], two["n"]
    if item.name in {"mean", "stddev"} and not (n and m):
        return dict(one if n else two)
    if item.name == "mean":
        return {"n": n + m, "seen": (n * one["seen"] + m * two["seen"]) / (n + m)}
    if item.name == "stddev":
        gap = two["mean"] - one["mean"]
        squares = sum((part["n"] - 1) * (part["seen"] or 0.0) ** 2 for part in (one, two)) + gap**2 * n * m / (n + m)
        return {"n": n + m, "seen": math.sqrt(squares / (n + m - 1)), "mean": one["mean"] + gap * m / (n + m)}
    return {name: (one.get(name) or 0) + (two.get(name) or 0) for name in two}


def judged(item: Measure, seen: Mapping[str, Any], n_rows: int) -> tuple[bool | None, str]:
    """Says whether a measure holds, None where there is nothing to measure, and what was seen, in words.

    Args:
        item: The measure.
        seen: What `aggregates` and `special` counted.
        n_rows: How many rows were looked at.
    """
    n = seen["n"] or 0
    if item.name in {"psi", "ks"}:
        found = _divergence(item, seen, n_rows)
        if math.isnan(found.value):
            return None, "no values to compare"
        holds = item.comparison.holds(found.value)
        # What sampling alone would show is no evidence of a change.
        excused = not holds and found.value <= found.null_quantile and item.comparison.holds(0.0)
        return holds or excused, f"{found}" + ("; no more than so few rows show by chance" if excused else "")
    value = seen["seen"]
    if n == 0 or value is None:
        return None, "no values to measure"
    if item.name == "share":
        value = 100 * value / n
        return item.comparison.holds(value), f"{value:.4g} percent of {n:,} values"
    if item.name == "distinctValues":
        return item.comparison.holds(value), f"{value:,} of {n:,} values"
    return item.comparison.holds(value), f"{value:.6g} of {n:,} values"


def _divergence(item: Measure, seen: Mapping[str, Any], n_rows: int) -> "Divergence":
    from vitok.stats import ks, psi

    n = seen["n"] or 0
    if item.values:
        listed = [seen[f"is_{index}"] or 0 for index in range(len(item.values))]
        return psi(item.counts, [n_rows - n, *listed, n - sum(listed)])
    below = [seen[f"below_{index}"] or 0 for index in range(len(item.edges))]
    cells = [high - low for low, high in zip([0, *below], [*below, n], strict=True)]
    if item.name == "ks":
        return ks(item.counts[2:-1], cells)
    minus, plus = seen.get("minus") or 0, seen.get("plus") or 0
    return psi(item.counts, [n_rows - n - minus - plus, minus, *cells, plus])


def frozen_histogram(values: "pl.Series", *, n_bins: int = 10) -> dict[str, object]:
    """Freezes the distribution of a column as the `implementation` of a `psi` or `ks` rule wants it.

    Args:
        values: A column of numbers or of words, at least one value.
        n_bins: About how many bins numbers get, at least 2; of words the most frequent ones are named.

    Returns:
        `edges` and `counts`, or `values` and `counts`: write them into the contract beside `metric` and a bound.

    Raises:
        InvalidInput: If there are no values, or they are neither numbers nor words.

    Example:
        >>> import polars as pl
        >>> frozen_histogram(pl.Series(["a", "a", "b", None]))
        {'values': ['a', 'b'], 'counts': [1, 2, 1, 0]}
    """
    import polars as pl

    from vitok.stats import FrozenEdges

    if values.is_empty():
        raise InvalidInput("values", [], "hold at least one value")
    if n_bins < 2:
        raise InvalidInput("n_bins", n_bins, "be at least 2")
    if values.dtype.is_numeric():
        numbers = values.cast(pl.Float64).fill_null(math.nan).to_numpy()
        edges = FrozenEdges.from_values(numbers, n_bins=n_bins)
        if not edges.edges:
            raise InvalidInput("values", values.head(3).to_list(), "hold a finite number")
        return {"edges": list(edges.edges), "counts": edges.count(numbers).tolist()}
    if values.dtype != pl.String():
        raise InvalidInput("values", str(values.dtype), "be numbers or words")
    known = values.drop_nulls()
    words = known.value_counts(sort=False).sort("count", known.name, descending=[True, False]).head(n_bins)
    counts = words["count"].to_list()
    return {
        "values": words[known.name].to_list(),
        "counts": [values.null_count(), *counts, len(known) - sum(counts)],
    }
