"""What outcomes do to the labels that features count: the first one is an event, each that supersedes it a correction.

A chargeback that is reversed was counted as a fraud of its terminal when it came. It is not taken out again: from the
moment in which the reversal is learned the difference, new less old, is added to the sum of frauds, at the time of the
first label and without counting a label more. So the share of frauds is that of what is held to be true now, among the
same labels; a decision of before saw what was held to be true then; and the difference leaves each window together with
the label that it is about. (At a time of its own it would stay in a window of 30 days that its label has left, and the
share would fall below zero.)

Of the outcomes of a transaction the one with the latest event time stands, and of those with the same the one that was
learned last. An older one that arrives late, and a delivery that is repeated, change nothing. An outcome says 0 or 1;
none takes a label back to "not known".

The rule is in `Standing.after`; the service follows it outcome by outcome and keeps where each label stands beside the
label, in the checkpoint of the features. `label_events` makes the same events of a whole log.
"""

import dataclasses
import hashlib
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from vitok.clock import HOUR
from vitok.errors import StoreError

if TYPE_CHECKING:
    import polars as pl

_HEAD = struct.Struct("<dqqq")
_SET_BACK = HOUR  # as the log takes it
_MARK = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where the label of a transaction stands.

    Attributes:
        value: What is held to be true, 0 or 1.
        label_time: Event time of the first label, microseconds: where it lies in windows.
        event_time: Event time of the outcome that stands.
        learned: When that one was learned.
        marks: What was said as of that event time, each outcome as 8 bytes: to know a repeated delivery again.

    Example:
        >>> first = Standing.first(1.0, 10, "chargeback", 12)
        >>> reversal = first.after(0.0, 30, "chargeback", 33)
        >>> reversal.value, reversal.label_time, reversal.event_time
        (0.0, 10, 30)
        >>> reversal.after(1.0, 20, "chargeback", 34) is None  # it is older, and came late
        True
        >>> Standing.unpack(reversal.pack()) == reversal
        True
    """

    value: float
    label_time: int
    event_time: int
    learned: int
    marks: tuple[bytes, ...]

    @classmethod
    def first(cls, value: float, event_time: int, source: str, learned: int) -> Self:
        """Returns where a label stands after its first outcome; the arguments are those of `after`."""
        marks = (_mark(value, source),)
        return cls(value=value, label_time=event_time, event_time=event_time, learned=learned, marks=marks)

    def after(self, value: float, event_time: int, source: str, learned: int) -> Self | None:
        """Returns where it stands after an outcome that supersedes; None where that one changes nothing.

        Args:
            value: What it says.
            event_time: When that became true, microseconds.
            source: Who says so.
            learned: When that was learned, microseconds.
        """
        mark = _mark(value, source)
        if event_time < self.event_time:
            return None
        if event_time > self.event_time:
            return dataclasses.replace(self, value=value, event_time=event_time, learned=learned, marks=(mark,))
        if mark in self.marks:
            return None
        return dataclasses.replace(self, value=value, learned=learned, marks=(*self.marks, mark))

    def learned_after(self, now: int) -> int:
        """Returns when an outcome that comes now is learned: after the one that stands, also by a clock set back.

        Of outcomes the log believes the one that was learned last. A clock set back by more than an hour was wrong
        before, and is believed now.
        """
        return self.learned + 1 if now <= self.learned <= now + _SET_BACK else now

    def pack(self) -> bytes:
        """Returns it as bytes, to be noted with the label."""
        return _HEAD.pack(self.value, self.label_time, self.event_time, self.learned) + b"".join(self.marks)

    @classmethod
    def unpack(cls, note: bytes) -> Self:
        """Reads what `pack` wrote.

        Raises:
            StoreError: If the bytes are something else.
        """
        if len(note) < _HEAD.size + _MARK or (len(note) - _HEAD.size) % _MARK:
            raise StoreError(f"{len(note)} bytes of the online store do not say where a label stands; fill it anew")
        value, label_time, event_time, learned = _HEAD.unpack_from(note)
        marks = tuple(note[at : at + _MARK] for at in range(_HEAD.size, len(note), _MARK))
        return cls(value=value, label_time=label_time, event_time=event_time, learned=learned, marks=marks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelEvents:
    """The events that the outcomes of a log are to the features.

    Attributes:
        labels: The first outcome of each transaction, with all columns that were given.
        corrections: `transaction_id`, `label_time` (that of the first), `known_time` (when it was learned),
            `is_fraud` (new less old): what `vitok.features.corrections.with_corrections` takes, once the terminal is
            there. In the order of the log.
        n_orphans: Superseding outcomes whose label is not there: it came before the log, or was removed from it.
    """

    labels: "pl.DataFrame"
    corrections: "pl.DataFrame"
    n_orphans: int = 0


def label_events(outcomes: "pl.DataFrame") -> LabelEvents:
    """Makes events of outcomes, as the service made them one by one.

    Args:
        outcomes: In the order of the log, labels of the history first: `transaction_id`, `label_time` (when it became
            true), `known_time` (when it was learned), `is_fraud`, `source`, `supersedes`; further columns stay.

    Example:
        >>> import polars as pl
        >>> told = pl.DataFrame({
        ...     "transaction_id": ["a", "b", "a"],
        ...     "label_time": [10, 11, 30],
        ...     "known_time": [12, 12, 33],
        ...     "is_fraud": [1.0, 0.0, 0.0],
        ...     "source": ["chargeback"] * 3,
        ...     "supersedes": [False, False, True],
        ... }).with_columns(pl.col("label_time", "known_time").cast(pl.Datetime("us", "UTC")))
        >>> found = label_events(told)
        >>> found.labels["is_fraud"].to_list(), found.corrections["is_fraud"].to_list()
        ([1.0, 0.0], [-1.0])
        >>> found.corrections.select(pl.col("label_time", "known_time").to_physical()).row(0)
        (10, 33)
    """
    import polars as pl

    labels = outcomes.filter(~pl.col("supersedes")).unique("transaction_id", keep="first", maintain_order=True)
    later = outcomes.filter("supersedes")
    known = labels.join(later.select("transaction_id"), on="transaction_id", how="semi")
    standing = {name: Standing.first(*told) for name, *told in _told(known)}
    found: list[tuple[str, int, int, float]] = []
    n_orphans = 0
    for name, *told in _told(later):
        before = standing.get(name)
        if before is None:
            n_orphans += 1
            continue
        after = before.after(*told)
        if after is not None:
            standing[name] = after
            found.append((name, after.label_time, after.learned, after.value - before.value))
    schema = {"transaction_id": pl.String, "label_time": pl.Int64, "known_time": pl.Int64, "is_fraud": pl.Float64}
    corrections = pl.DataFrame(found, schema=schema, orient="row").with_columns(
        pl.col("label_time", "known_time").cast(pl.Datetime("us", "UTC"))
    )
    return LabelEvents(labels=labels, corrections=corrections, n_orphans=n_orphans)


def label_notes(labels: "pl.DataFrame") -> "pl.Series":
    """Returns what is noted with labels of a history that is loaded: where each stands, so that it can be superseded.

    Args:
        labels: `is_fraud` and `label_time`.

    Returns:
        A binary series, one note a row, for `OnlineFeatures.backfill(notes={"labels": ...})`.
    """
    import polars as pl

    times = labels["label_time"].cast(pl.Datetime("us", "UTC")).to_physical()
    values = labels["is_fraud"].cast(pl.Float64)
    notes = [Standing.first(value, moment, "", moment).pack() for value, moment in zip(values, times, strict=True)]
    return pl.Series(notes, dtype=pl.Binary)


def _told(frame: "pl.DataFrame") -> Iterator[tuple[Any, ...]]:
    import polars as pl

    columns = frame.select("transaction_id", "is_fraud", "label_time", "source", "known_time")
    return columns.with_columns(pl.col("label_time", "known_time").to_physical()).iter_rows()


def _mark(value: float, source: str) -> bytes:
    return hashlib.blake2b(f"{value!r}|{source}".encode(), digest_size=_MARK).digest()
