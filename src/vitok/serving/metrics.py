"""What Prometheus reads: plain counters and histograms that the service keeps anyway, written out when it asks."""

import itertools
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vitok.errors import InvalidInput
from vitok.stats import LatencyHistogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BOUNDS_US = (
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    10_000_000,
)

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


class Counter:
    """Counts up, by the values of its labels; made by `Metrics.counter`.

    Where each request counts, take the child of the labels once: `child = counter.child("block")`, then
    `child.value += 1`.
    """

    def __init__(self, labels: tuple[str, ...]) -> None:
        self._labels = labels
        self._children: dict[tuple[str, ...], Child] = {}
        if not labels:
            self.child()

    def child(self, *values: str) -> "Child":
        """Returns the count for these label values, in the order of the labels.

        Raises:
            InvalidInput: If there are more or fewer values than labels.
        """
        child = self._children.get(values)
        if child is None:
            if len(values) != len(self._labels):
                raise InvalidInput("label values", values, f"be one for each of {self._labels}")
            child = self._children[values] = Child()
        return child

    def add(self, amount: float = 1, *values: str) -> None:
        """Adds to the count of these label values.

        Raises:
            InvalidInput: If the amount is negative or no number, or the values do not fit the labels.
        """
        if not 0 <= amount < math.inf:
            raise InvalidInput("amount", amount, "be a finite number, at least 0", "A counter only counts up")
        self.child(*values).value += amount

    def samples(self) -> Mapping[tuple[str, ...], float]:
        """Returns the counts by label values."""
        return {values: child.value for values, child in list(self._children.items())}


@dataclass(slots=True)
class Child:
    """One number of a counter.

    Attributes:
        value: The count; only ever raise it.
    """

    value: float = 0


_Samples = Callable[[], Mapping[tuple[str, ...], float]]
_Histograms = Callable[[], Mapping[tuple[str, ...], LatencyHistogram]]


@dataclass(frozen=True)
class _Family:
    name: str
    kind: str
    explanation: str
    labels: tuple[str, ...]
    lines: Callable[[], Iterator[str]] = field(repr=False)


class Metrics:
    r"""The metrics of one service. A request costs nothing here but the additions it makes to plain numbers.

    Writes the text format of Prometheus, version 0.0.4.

    Example:
        >>> metrics = Metrics()
        >>> decisions = metrics.counter("vitok_decisions_total", "Decisions made.", labels=("action",))
        >>> decisions.add(3, "block")
        >>> print(metrics.expose().decode(), end="")
        # HELP vitok_decisions_total Decisions made.
        # TYPE vitok_decisions_total counter
        vitok_decisions_total{action="block"} 3
    """

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def counter(self, name: str, explanation: str, *, labels: Sequence[str] = ()) -> Counter:
        """Makes a counter.

        Args:
            name: Ends in `_total`, as the rules for names have it.
            explanation: What is counted, in a sentence.
            labels: Names of the labels. Each set of values is a time series; never put a key of an entity here.

        Raises:
            InvalidInput: If a name breaks the rules or exists already.
        """
        counter = Counter(tuple(labels))
        self._add_numbers("counter", name, explanation, labels, counter.samples)
        return counter

    def read_counter(self, name: str, explanation: str, read: _Samples, *, labels: Sequence[str] = ()) -> None:
        """Shows numbers that are counted elsewhere and only grow; `read` gives them by label values.

        Raises:
            InvalidInput: As `counter`.
        """
        self._add_numbers("counter", name, explanation, labels, read)

    def gauge(self, name: str, explanation: str, read: _Samples, *, labels: Sequence[str] = ()) -> None:
        """Shows numbers that go up and down; `read` gives them by label values, `{(): 3.0}` without labels.

        Raises:
            InvalidInput: If a name breaks the rules or exists already.
        """
        self._add_numbers("gauge", name, explanation, labels, read)

    def latencies(
        self,
        name: str,
        explanation: str,
        read: _Histograms,
        *,
        labels: Sequence[str] = (),
        bounds_us: Sequence[int] = BOUNDS_US,
    ) -> None:
        """Shows latency histograms as cumulative buckets in seconds, so that Prometheus can add up processes.

        A latency counts for a bound if the whole bucket that holds it lies below, so near a bound a bucket may lag
        by 1.6 % of its value.

        Args:
            name: Ends in `_seconds`.
            explanation: What is measured, in a sentence.
            read: Gives the histograms by label values.
            labels: Names of the labels.
            bounds_us: Upper bounds of the buckets in microseconds, ascending.

        Raises:
            InvalidInput: If a name breaks the rules or exists already, or the bounds do not ascend.
        """
        if not name.endswith("_seconds"):
            raise InvalidInput("name", name, "end in _seconds")
        if "le" in labels:
            raise InvalidInput("label", "le", "not be the label of the buckets")
        if not bounds_us or any(low >= high for low, high in itertools.pairwise(bounds_us)):
            raise InvalidInput("bounds_us", tuple(bounds_us), "ascend and not be empty")
        bounds, names = tuple(bounds_us), tuple(labels)

        def lines() -> Iterator[str]:
            for values, histogram in read().items():
                yield from _histogram_lines(name, names, values, histogram, bounds)

        self._add(_Family(name, "histogram", explanation, names, lines))

    def expose(self) -> bytes:
        """Writes all metrics as text; serve it with `CONTENT_TYPE`."""
        out = []
        for family in self._families.values():
            out.append(f"# HELP {family.name} {_escaped(family.explanation, quotes=False)}\n")
            out.append(f"# TYPE {family.name} {family.kind}\n")
            out.extend(line + "\n" for line in family.lines())
        return "".join(out).encode()

    def _add_numbers(self, kind: str, name: str, explanation: str, labels: Sequence[str], read: _Samples) -> None:
        if (kind == "counter") != name.endswith("_total"):
            raise InvalidInput("name", name, f"{'end' if kind == 'counter' else 'not end'} in _total for a {kind}")
        names = tuple(labels)

        def lines() -> Iterator[str]:
            for values, number in read().items():
                yield f"{name}{_label_text(names, values)} {_number(number)}"

        self._add(_Family(name, kind, explanation, names, lines))

    def _add(self, family: _Family) -> None:
        if not _NAME.fullmatch(family.name):
            raise InvalidInput("name", family.name, "be letters, digits, _ and :, and not start with a digit")
        if family.name in self._families:
            raise InvalidInput("name", family.name, "be new: there is such a metric already")
        for label in family.labels:
            if not _LABEL.fullmatch(label):
                raise InvalidInput("label", label, "be letters, digits and _, and start with neither a digit nor __")
        if len(set(family.labels)) < len(family.labels):
            raise InvalidInput("labels", family.labels, "differ from each other")
        self._families[family.name] = family


def _histogram_lines(
    name: str, labels: tuple[str, ...], values: tuple[str, ...], histogram: LatencyHistogram, bounds: tuple[int, ...]
) -> Iterator[str]:
    stored = histogram.to_dict()
    counts = [0] * (len(bounds) + 1)
    for bucket, count in stored["buckets"]:
        counts[bisect_left(bounds, _largest_in(bucket))] += count
    below = 0
    for bound, count in zip((*bounds, math.inf), counts, strict=True):
        below += count
        yield f"{name}_bucket{_label_text((*labels, 'le'), (*values, _number(bound / 1e6)))} {below}"
    yield f"{name}_sum{_label_text(labels, values)} {_number(stored['total_us'] / 1e6)}"
    yield f"{name}_count{_label_text(labels, values)} {stored['count']}"


def _largest_in(bucket: int) -> int:
    # The layout of LatencyHistogram: whole microseconds below 128, then 64 buckets a doubling.
    if bucket < 128:
        return bucket
    shift = (bucket >> 6) - 1
    return ((bucket - (shift << 6) + 1) << shift) - 1


def _label_text(labels: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not labels:
        return ""
    pairs = zip(labels, values, strict=True)
    return "{" + ",".join(f'{label}="{_escaped(value, quotes=True)}"' for label, value in pairs) + "}"


def _escaped(text: str, *, quotes: bool) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
