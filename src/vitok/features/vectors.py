"""What an online read returns: one matrix in the model's own order, and how old and how good each part of it is."""

import dataclasses
from typing import Any

import numpy as np

from vitok.clock import isoformat

FRESH, STALE, MISSING = range(3)
STORE, CACHE, DEFAULT = range(3)
STATUS_WORDS = ("fresh", "stale", "missing")
SOURCE_WORDS = ("store", "cache", "default")
_SHOWN_ROWS, _SHOWN_NAMES = 5, 6


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False, slots=True)
class Vectors:
    """Feature vectors of some entities at some times.

    Attributes:
        names: The features, in the model's order.
        values: Shape (n, features), in the model's type; NaN where a feature has no value.
        event_times: Shape (n, views), int64 microseconds: the time of the row that a view's values come from; -1
            where it is missing.
        status: Shape (n, views), uint8: FRESH; STALE, a row older than the view's TTL, whose values are NaN; MISSING,
            no row that may be seen at that time.
        source: Shape (n, views), uint8: STORE; CACHE, the last good row of a store that is down; DEFAULT, values that
            stand in for a missing row, or nothing at all while the store is down.
        views: Names of the views, the columns of the three arrays above.

    Example:
        >>> none = np.zeros((1, 1), np.uint8)
        >>> Vectors(
        ...     names=("account_limit",),
        ...     values=np.array([[500.0]]),
        ...     event_times=np.array([[0]]),
        ...     status=none,
        ...     source=none,
        ...     views=("account",),
        ... )
        1 vector of 1 feature
        row  status  account_limit  account
          0  fresh           500.0  fresh from store, 1970-01-01T00:00:00Z
    """

    names: tuple[str, ...]
    values: np.ndarray
    event_times: np.ndarray
    status: np.ndarray
    source: np.ndarray
    views: tuple[str, ...]

    def __len__(self) -> int:
        """How many vectors."""
        return len(self.values)

    def status_of(self, row: int) -> str:
        """Returns the worst status of a row's views: `"fresh"`, `"stale"` or `"missing"`."""
        return STATUS_WORDS[int(self.status[row].max(initial=FRESH))]

    def source_of(self, row: int) -> str:
        """Returns the worst source of a row's views: `"store"`, `"cache"` or `"default"`."""
        return SOURCE_WORDS[int(self.source[row].max(initial=STORE))]

    def to_dicts(self) -> list[dict[str, Any]]:
        """Returns the rows for people to read: values, and by view its time, status and source."""
        out = []
        for row, values in enumerate(self.values.tolist()):
            named = {name: None if value != value else value for name, value in zip(self.names, values, strict=True)}
            views = {
                name: {
                    "event_time": isoformat(time) if time >= 0 else None,
                    "status": STATUS_WORDS[status],
                    "source": SOURCE_WORDS[source],
                }
                for name, time, status, source in zip(
                    self.views,
                    self.event_times[row].tolist(),
                    self.status[row].tolist(),
                    self.source[row].tolist(),
                    strict=True,
                )
            }
            out.append({"values": named, "views": views})
        return out

    def __repr__(self) -> str:
        """Returns the first rows as a table."""
        rows = [["row", "status", *self.names[:_SHOWN_NAMES], *self.views[:_SHOWN_NAMES]]]
        for row in range(min(len(self), _SHOWN_ROWS)):
            shown = [f"{value:.6}" for value in self.values[row, :_SHOWN_NAMES].tolist()]
            rows.append([str(row), self.status_of(row), *shown, *self._view_texts(row)])
        n_left = 2 + len(self.names[:_SHOWN_NAMES])
        width = [max(len(line[column]) for line in rows) for column in range(len(rows[0]))]
        text = [f"{len(self)} vector{'s'[: len(self) != 1]} of {len(self.names)} feature{'s'[: len(self.names) != 1]}"]
        for line in rows:
            cells = [
                cell.ljust(width[place]) if place == 1 or place >= n_left else cell.rjust(width[place])
                for place, cell in enumerate(line)
            ]
            text.append("  ".join(cells).rstrip())
        if len(self) > _SHOWN_ROWS:
            text.append("...")
        return "\n".join(text)

    def _view_texts(self, row: int) -> list[str]:
        out = []
        for view in range(min(len(self.views), _SHOWN_NAMES)):
            time = int(self.event_times[row, view])
            words = f"{STATUS_WORDS[self.status[row, view]]} from {SOURCE_WORDS[self.source[row, view]]}"
            out.append(f"{words}, {isoformat(time)}" if time >= 0 else words)
        return out
