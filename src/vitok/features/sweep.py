"""The windows of a view at past moments: what its kernel is told, and what it gives."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitok.errors import InvalidInput
from vitok.features.answers import Answers, Matrix
from vitok.features.late_kernels import CENTRED, EARLIEST, HAVE, LATEST, LEAST, MOST, SQUARES, TOTAL
from vitok.features.plan import COUNT, DISTINCT, FIRST, LAST, MAX, MEAN, MIN, NUMBER, RATE, RATIO, RECENT, STD, SUM, TOP
from vitok.features.sweep_kernels import Facts, Questions, Work, sweep
from vitok.features.views import View

if TYPE_CHECKING:
    import polars as pl

    from vitok.features.ordered import Ordered

_KEPT = {
    NUMBER: (HAVE,),
    SUM: (TOTAL,),
    MEAN: (HAVE, TOTAL),
    STD: (HAVE, CENTRED, SQUARES),
    MIN: (LEAST,),
    MAX: (MOST,),
    FIRST: (EARLIEST,),
    LAST: (LATEST,),
    RECENT: (HAVE, LATEST),
}
_PAIRS = {TOTAL, CENTRED, SQUARES}


class Sweep:
    """Computes the features of a view of windows from its sorted events.

    Args:
        view: The view.

    Attributes:
        view: The view.
        columns: Columns of the source that it reads besides keys, times and ids.
        has_order: Whether events of one instant must come in order.
        width: Words that it keeps of an event.
        empty: Shape (columns,), int64 words: the answer where there is no event.
    """

    def __init__(self, view: View) -> None:
        plan = view.plan
        self.view, self.columns, self.has_order = view, view.columns, plan.has_order
        self._inputs, self._codes = len(plan.inputs), len(plan.codes)
        self.width = self._inputs + self._codes
        rows = plan.rows.tolist()
        self.n_features = len(plan.names)
        # The asking event joins a mean by its number of values and their sum.
        self._means: dict[int, int] = {}
        kept = list(range(self.n_features))
        if view.include_current:
            for place, (kind, window, index, _, _) in enumerate(rows[: self.n_features]):
                if kind == MEAN:
                    self._means[place] = len(kept)
                    kept += [len(rows), len(rows) + 1]
                    rows += [[NUMBER, window, index, -1, -1], [SUM, window, index, -1, -1]]
        self._work = _work(view, rows, kept)
        empty = np.zeros(len(kept))
        empty[: self.n_features] = plan.empty
        self.empty = empty.view(np.int64)

    def words(self, frame: "pl.DataFrame") -> np.ndarray:
        """Takes what it needs from events, shape (events, width), int64.

        Raises:
            InvalidInput: If a column is of the wrong type or not finite.
        """
        plan = self.view.plan
        _check_tops(self.view, frame)
        out = np.empty((len(frame), self.width), np.int64)
        out[:, : self._inputs] = plan.values(frame).view(np.int64)
        out[:, self._inputs :] = plan.kinds_counted(frame)
        return out

    def answer(self, events: "Ordered", part: int, asked: Questions, n_rows: int) -> Answers:
        """Answers the questions of one partition."""
        facts, late = _facts(
            events, np.take(events.parts[part], events.order, axis=0), self.view.available_after is None
        )
        out = np.empty((n_rows, len(self.empty)))
        empty = self.empty.view(np.float64)
        if len(asked.order) < n_rows:
            out[:] = empty
        sweep(asked, facts, late, self._work, empty, out)
        return Matrix(out.view(np.int64))

    def finish(self, values: np.ndarray, spine: "pl.DataFrame") -> np.ndarray:
        """Makes features of answers, shape (rows, features): adds the asking event to its windows where it counts.

        It is added by value, so that other events of the same instant stay outside.
        """
        if not self.view.include_current:
            return values
        plan = self.view.plan
        own = plan.values(spine) if plan.inputs else np.empty((len(spine), 0))
        out = values[:, : self.n_features].copy()
        for place, (kind, _, index, _, _) in enumerate(plan.rows[: self.n_features].tolist()):
            if kind == COUNT:
                out[:, place] += 1.0
                continue
            value = own[:, index]
            there = ~np.isnan(value)
            if kind == SUM:
                out[there, place] += value[there]
            else:
                at = self._means[place]
                n, total = values[there, at], values[there, at + 1]
                out[there, place] = (total + value[there]) / (n + 1.0)
        return out


def _work(view: View, rows: Sequence[Sequence[int]], kept: Sequence[int]) -> Work:
    plan = view.plan
    wanted: dict[tuple[int, int], set[int]] = {}
    trackers: dict[tuple[int, int], int] = {}
    ranks: dict[tuple[int, int], int] = {}
    recents: list[list[int]] = []
    for place, (kind, window, index, argument, _) in enumerate(rows):
        if kind in {DISTINCT, TOP}:
            trackers.setdefault((window, index), len(trackers))
            if kind == TOP:
                ranks[window, index] = max(ranks.get((window, index), 0), argument + 1)
        elif kind not in {COUNT, RATIO, RATE}:
            for what in _KEPT[kind]:
                wanted.setdefault((what, index), set()).add(window)
        if kind == RECENT:
            if argument == 0:
                recents.append([window, index, place, 0])
            recents[-1][3] = argument + 1
    fields, slots = [], np.full((8, max(len(plan.inputs), 1)), -1, np.int64)
    at, added = 0, 0
    for what, index in sorted(wanted):
        fields.append([what, index, at])
        slots[what, index] = at
        at += 2 if what in _PAIRS else 1
        if what <= SQUARES:
            added = at
    uses = np.zeros((len(plan.bounds), max(len(fields), 1)), np.bool_)
    for place, (what, index, _) in enumerate(fields):
        uses[list(wanted[what, index]), place] = True
    tracker_of = [trackers.get((window, index), 0) for _, window, index, _, _ in rows]
    lag = view.available_after
    shape = [len(plan.inputs), len(plan.codes), at + 1, added, max(ranks.values(), default=0), max((lag or 0) - 1, 0)]
    scale = np.ones(len(rows))
    scale[: len(plan.scale)] = plan.scale
    return Work(
        rows=_table(rows, 5),
        scale=scale,
        bounds=_table(plan.bounds.tolist(), 2),
        fields=_table(fields, 3),
        slot=slots,
        uses=uses,
        trackers=_table([[*key, ranks.get(key, 0)] for key in trackers], 3),
        tracker_of=np.array(tracker_of, np.int64),
        recents=_table(recents, 4),
        kept=np.array(kept, np.int64),
        shape=np.array(shape, np.int64),
    )


def _table(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    return np.array(rows, np.int64).reshape(-1, width)


def _facts(events: "Ordered", words: np.ndarray, by_ingest: bool) -> tuple[Facts, Facts]:  # noqa: FBT001
    # Parts events known at once from those that became known after their event time.
    time = np.ascontiguousarray(events.ranks[:, 0])
    nothing = np.zeros(0, np.int64)
    late = events.ranks[:, 1] > time if by_ingest else np.zeros(0, np.bool_)
    if not late.any():
        none = Facts(np.zeros_like(events.start), nothing, nothing, words[:0], words[:0].view(np.float64), nothing)
        return Facts(events.start, time, nothing, words, words.view(np.float64), nothing), none
    before = np.concatenate([[0], np.cumsum(late)])[events.start]
    made = []
    for start, chosen in ((events.start - before, np.flatnonzero(~late)), (before, np.flatnonzero(late))):
        part = np.take(words, chosen, axis=0)
        known = np.take(events.ranks[:, 1], chosen)
        made.append(Facts(start, np.take(time, chosen), known, part, part.view(np.float64), chosen))
    return made[0], made[1]


def _check_tops(view: View, frame: "pl.DataFrame") -> None:
    # A value found again from its bits must have been a number, and one that a float can hold.
    import polars as pl

    plan = view.plan
    for index in {row[2] for row in plan.rows.tolist() if row[0] == TOP}:
        name = plan.codes[index].column
        column, where = frame[name], f"view {view.name!r}: TopK of {name}"
        if name in plan.source.encodings:
            continue
        if column.dtype == pl.String:
            fix = f"Give the source an encoding: encode={{{name!r}: Categories((...))}}."
            raise InvalidInput(where, str(column.dtype), "be of numbers", fix)
        if column.dtype.is_integer() and len(column):
            for value in (column.min(), column.max()):
                if value is not None and abs(int(value)) > 2**53:
                    raise InvalidInput(
                        where, value, "be of whole numbers up to 2**53", "Cast it to text and encode it."
                    )
