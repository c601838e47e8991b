"""How fresh each view is: by when its newest fact happened, and by when its newest fact arrived. Two clocks.

A source that stands still and a pipe that is stuck look the same on one clock. The newest event time says how old the
knowledge is; the newest arrival says whether anything still comes in.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from vitok.clock import duration, isoformat
from vitok.engines.row_store import RowStore
from vitok.features.materialise import progress_key
from vitok.features.notes import read_note
from vitok.features.views import AnyView, Embedding

State = Literal["fresh", "stale", "unpromised", "timeless"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Newest:
    """The latest that is known of a source.

    Attributes:
        event_time: When its newest fact happened, microseconds; None where nothing ever came.
        arrival: When its newest fact arrived, microseconds; None where nobody wrote that down.
    """

    event_time: int | None = None
    arrival: int | None = None

    def merge(self, other: "Newest") -> "Newest":
        """Returns the later of both on each clock."""
        return Newest(event_time=_later(self.event_time, other.event_time), arrival=_later(self.arrival, other.arrival))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Freshness:
    """How fresh a view is at a moment.

    Attributes:
        view: Name of the view.
        source: Name of its source; of an embedding its index and version.
        owner: Who answers for it.
        promised: How old its newest event may be, in microseconds; None without a promise.
        event_time: When its newest fact happened; None where nothing is known.
        arrival: When its newest fact arrived; None where nothing is known.
        now: The moment, in microseconds.
    """

    view: str
    source: str
    owner: str
    promised: int | None
    event_time: int | None
    arrival: int | None
    now: int
    timeless: bool = False

    @property
    def event_age(self) -> int | None:
        """How long ago its newest fact happened, in microseconds; below 0 where it lies in the future."""
        return None if self.event_time is None else self.now - self.event_time

    @property
    def arrival_age(self) -> int | None:
        """How long ago its newest fact arrived, in microseconds."""
        return None if self.arrival is None else self.now - self.arrival

    @property
    def state(self) -> State:
        """How it stands.

        `"stale"` where it promised more than it keeps, also where nothing of it is known; `"fresh"` where it keeps
        its promise; `"unpromised"` where it made none; `"timeless"` for what does not change with time.
        """
        if self.timeless:
            return "timeless"
        if self.promised is None:
            return "unpromised"
        # A store that was filled by runs alone knows how far they came, not what happened last.
        age = self.event_age if self.event_age is not None else self.arrival_age
        return "stale" if age is None or age > self.promised else "fresh"

    def to_dict(self) -> dict[str, Any]:
        """Returns it as what JSON can hold, with ages in seconds."""
        return {
            "view": self.view,
            "source": self.source,
            "owner": self.owner,
            "state": self.state,
            "promised_s": _seconds(self.promised),
            "newest_event": None if self.event_time is None else isoformat(self.event_time),
            "event_age_s": _seconds(self.event_age),
            "newest_arrival": None if self.arrival is None else isoformat(self.arrival),
            "arrival_age_s": _seconds(self.arrival_age),
        }

    def __str__(self) -> str:
        if self.timeless:
            return f"{self.view}: does not change with time ({self.source})"
        promise = "" if self.promised is None else f", promised within {_told(self.promised)}"
        clocks = (("newest event", self.event_age), ("newest arrival", self.arrival_age))
        known = ", ".join(f"{name} {_told(age)} ago" for name, age in clocks if age is not None)
        state = "no promise" if self.promised is None else self.state
        return f"{self.view}: {state}, {known or f'nothing of {self.source} is known'}{promise}"


def freshness(views: Iterable[AnyView], newest: Mapping[str, Newest], *, now: int) -> tuple[Freshness, ...]:
    """Says how fresh some views are.

    Args:
        views: The definitions; `fresh_within` is what each promises.
        newest: What is known, by the name of the view, or of its source. Where both are there the view counts: a
            store may lag behind its source.
        now: The present, in microseconds.

    Example:
        >>> from vitok.features import Count, Entity, Source, View
        >>> card, paid = Entity("card", "card_id"), Source("payments", "payment_id")
        >>> view = View(name="card", entity=card, source=paid, aggregations=(Count("1h"),), fresh_within="1h")
        >>> hour = 3_600_000_000
        >>> print(freshness([view], {"payments": Newest(event_time=0, arrival=hour)}, now=2 * hour)[0])
        card: stale, newest event 2 h ago, newest arrival 1 h ago, promised within 1 h
    """
    found = []
    for view in views:
        source = view.reference if isinstance(view, Embedding) else view.source.name
        known = newest.get(view.name) or newest.get(source) or Newest()
        found.append(
            Freshness(
                view=view.name,
                source=source,
                owner=view.owner,
                promised=duration(view.fresh_within) if view.fresh_within else None,
                event_time=known.event_time,
                arrival=known.arrival,
                now=now,
                timeless=isinstance(view, Embedding),
            )
        )
    return tuple(found)


def stale(views: Iterable[AnyView], newest: Mapping[str, Newest], *, now: int) -> tuple[Freshness, ...]:
    """Returns the views that break their `fresh_within`, the worst first; arguments as of `freshness`."""
    found = [item for item in freshness(views, newest, now=now) if item.state == "stale"]
    return tuple(sorted(found, key=_overdue, reverse=True))


def newest_in(store: RowStore, views: Iterable[AnyView]) -> dict[str, Newest]:
    """Asks an online store of rows how far the runs that filled it came, view by view.

    Args:
        store: The store that `materialise` fills.
        views: The definitions; another version of a view is another view.

    Returns:
        View to what is known of it; views that were never taken to the store are left out.

    Raises:
        StoreError: If the store cannot be read.
    """
    out = {}
    for view in views:
        note, _ = read_note(store, progress_key(view))
        if note.get("watermark") is not None:
            out[view.name] = Newest(event_time=note.get("newest"), arrival=note["watermark"])
    return out


def _overdue(item: Freshness) -> float:
    # A view that never had a fact is the worst of all.
    age = item.event_age if item.event_age is not None else item.arrival_age
    return float("inf") if age is None or not item.promised else age / item.promised


def _later(one: int | None, other: int | None) -> int | None:
    return max((item for item in (one, other) if item is not None), default=None)


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1e6


def _told(microseconds: int) -> str:
    if microseconds < 0:
        return f"-{_told(-microseconds)}"
    for unit, name in ((86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s")):
        if microseconds >= unit:
            return (
                f"{microseconds / unit:.3g} {name}" if microseconds < 100 * unit else f"{microseconds // unit} {name}"
            )
    return f"{microseconds} us"
