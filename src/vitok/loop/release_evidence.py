"""What a release is judged on: what was logged since the last look, and where the next one goes on."""

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vitok import decisions
from vitok.clock import DAY, HOUR
from vitok.decisions.reading import Span, scan
from vitok.decisions.segments import LANE, partition, segments
from vitok.errors import InvalidInput

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from vitok.loop.release_book import Release

_DIGEST = 8
_PIECE = 200_000
_MOST = 1_000_000


@dataclass(frozen=True)
class Split:
    """Requests that were split by one share.

    Attributes:
        requests: What `TrafficJudge.see` takes.
        share: Probability that a unit went to the candidate, in (0, 1).
    """

    requests: "pl.DataFrame"
    share: float


@dataclass(frozen=True, kw_only=True)
class Look:
    """What came since the look before.

    Attributes:
        decisions: New rows of the decision log, for `PairedJudge`; None where there are none.
        labelled: Decisions whose outcome became known, with a column `label`; None where there are none.
        splits: New requests of split traffic and their late outcomes, for `TrafficJudge`.
        position: Where the next look goes on, ready for JSON.
        more: Whether more is there already: a look is kept small enough for the memory, and a tick looks on.
    """

    decisions: "pl.DataFrame | None" = None
    labelled: "pl.DataFrame | None" = None
    splits: tuple[Split, ...] = ()
    position: Any = None
    more: bool = False


class Watched(Protocol):
    """What `LogEvidence` is asked about: a `Release`."""

    @property
    def position(self) -> Any:
        """Where the last look ended; None before the first."""
        ...

    @property
    def begun_at(self) -> int:
        """When it began, in microseconds."""
        ...

    @property
    def shares(self) -> tuple[tuple[int, float], ...]:
        """Since when which share went to the candidate, in microseconds, in order."""
        ...


class ReleaseEvidence(Protocol):
    """Where a release finds what it is judged on."""

    def look(self, release: "Release", *, now: int) -> Look:
        """Returns what came since `release.position`; asked again from there, the same and what came later."""
        ...


Rows = Callable[["pl.DataFrame"], "pl.DataFrame"]


@dataclass(frozen=True, kw_only=True)
class LogEvidence:
    """Evidence from the logs of decisions and outcomes of a service.

    A decision counts once when it is made and once when it is `maturity` old, with the label that is known then: an
    outcome that comes later, or supersedes it later, changes nothing. One that has no label by then (a block, of which
    nobody learns the truth) counts in no cost. Waiting for the same age everywhere keeps early bad news from weighing
    more than late good news. The age is that of the record, from its `ingest_time`.

    A look brings at most about a million decisions and the labels of one day, so that an outage of the caller costs
    no memory; segments that were written before the release began are not read.

    Args:
        folder: Folder with the logs `decisions` and `outcomes`.
        kind: Kind of the outcomes, such as `"fraud"`.
        maturity: Age at which labels are taken to be known, in microseconds.
        label_every: Labels are looked up once so much time of decisions has matured, in microseconds, above 0: to
            look reads the outcomes that came since those decisions were made.
        requests: Makes what `TrafficJudge.see` takes out of new decisions; None where traffic is not compared.
        outcomes: The same out of decisions with a `label`.
        seen_as: Changes rows before anybody judges them, such as taking an override out of them; None for as logged.
        trusted: Changes the labels before they are joined, such as leaving out those of a source that went wrong; None
            for all of them.
        settling: After a change of the share, decisions of so many microseconds count in no comparison of traffic:
            not every process has seen the change yet.
    """

    folder: Path
    kind: str
    maturity: int
    label_every: int = HOUR
    requests: Rows | None = None
    outcomes: Rows | None = None
    seen_as: Rows | None = None
    trusted: Rows | None = None
    settling: int = 5_000_000

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name, least in (("maturity", 0), ("label_every", 1), ("settling", 0)):
            if getattr(self, name) < least:
                raise InvalidInput(f"evidence: {name}", getattr(self, name), f"be at least {least}")

    def look(self, release: Watched, *, now: int) -> Look:
        """Reads both logs from where the release stands.

        Raises:
            StoreError: If a log cannot be read.
        """
        began = release.begun_at
        place: Mapping[str, Any] = release.position or {"decisions": None, "matured": began}
        frame, after, more = self._new(place["decisions"], began)
        grown = max((now - self.maturity) // self.label_every * self.label_every, place["matured"])
        matured = min(grown, place["matured"] + max(DAY, self.label_every))
        labelled = self._labelled(place["matured"], matured, now)
        if self.seen_as is not None:
            frame = None if frame is None else self.seen_as(frame)
            labelled = None if labelled is None else self.seen_as(labelled)
        splits = [*self._splits(frame, self.requests, release), *self._splits(labelled, self.outcomes, release)]
        return Look(
            decisions=frame,
            labelled=labelled,
            splits=tuple(splits),
            position={"decisions": after, "matured": matured},
            more=more or matured < grown,
        )

    def _new(self, place: Any, began: int) -> "tuple[pl.DataFrame | None, Any, bool]":
        import polars as pl

        folder = self.folder / "decisions"
        tail = decisions.Tail(folder, place or _start(folder, began))
        parts: list[pl.DataFrame] = []
        more = True
        try:
            while more and sum(map(len, parts)) < _MOST:
                rows = tail.read(_PIECE)
                more = rows is not None
                if rows is not None:
                    rows = rows.filter(pl.col("ingest_time").cast(pl.Int64) >= began)
                    parts += [rows] if len(rows) else []
            after = [list(one) for one in tail.positions]
        finally:
            tail.close()
        return (pl.concat(parts, how="diagonal_relaxed") if parts else None), after or place, more

    def labels(self, since: int, now: int) -> "pl.DataFrame | None":
        """Returns the labels that count of the decisions since a time, as they are known now; None without a log."""
        outcomes = self.folder / "outcomes"
        if not segments(outcomes):
            return None
        # Two machines' clocks differ: an outcome may seem to have come before its decision.
        known = decisions.labels(outcomes, as_of=now, kind=self.kind, since=since - HOUR)
        return known if self.trusted is None else self.trusted(known)

    def _labelled(self, start: int, end: int, now: int) -> "pl.DataFrame | None":
        made = self.folder / "decisions"
        known = self.labels(start, now) if end > start and segments(made) else None
        if known is None:
            return None
        return decisions.join(scan(made, Span(ingest=(start, end))), known).drop_nulls("label")

    def _splits(self, frame: "pl.DataFrame | None", made: Rows | None, release: Watched) -> Iterable[Split]:
        if frame is None or made is None or not len(frame):
            return ()
        return split_by_share(frame, made, release.shares, settling=self.settling)


def _start(folder: Path, began: int) -> list[list[int]] | None:
    """Says where a log is to be read from for what was written since a time: of each writer, the last hour before."""
    hour, found = partition(began), dict[int, int]()
    for segment in segments(folder):
        written = "/".join(segment.path.parts[-3:-1])
        if segment.number // LANE not in found or (written.startswith("day=") and written < hour):
            found[segment.number // LANE] = segment.first
    return [[number, 0] for number in found.values()] or None


def split_by_share(
    frame: "pl.DataFrame", made: Rows, shares: Sequence[tuple[int, float]], *, settling: int = 0
) -> tuple[Split, ...]:
    """Cuts decisions where the share changed, so that each is weighted by the share it was made under.

    An outcome that comes under the share of today belongs to a decision of the share of its own day.

    Args:
        frame: Decisions with `ingest_time`.
        made: Makes what `TrafficJudge.see` takes.
        shares: Since when which share, in microseconds, in order; 0 and 1 are no split.
        settling: Microseconds after a change that are left out.

    Returns:
        A part for each stretch in which there was a split and are rows.

    Example:
        >>> import polars as pl
        >>> frame = pl.DataFrame({"ingest_time": [5, 15, 25], "version": ["m/1"] * 3}).with_columns(
        ...     pl.col("ingest_time").cast(pl.Datetime("us", "UTC")))
        >>> [(part.share, len(part.requests)) for part in split_by_share(frame, lambda rows: rows,
        ...     [(10, 0.1), (20, 0.5)])]
        [(0.1, 1), (0.5, 1)]
    """
    import polars as pl

    time = pl.col("ingest_time").cast(pl.Int64)
    ends = [*(at for at, _ in shares[1:]), None]
    found = []
    for (start, share), end in zip(shares, ends, strict=False):
        rows = frame.filter(time >= start + settling, True if end is None else time < end)
        if 0 < share < 1 and len(rows):
            found.append(Split(made(rows), share))
    return tuple(found)


class Seen:
    """Ids that were counted, 8 bytes of a hash each, so that a judge's memory can be kept.

    They lie in a few sorted runs, each at least twice as long as the next, so that adding some to many costs what the
    few are, in memory and where they are kept. Two ids of a million have the same hash with a chance of 3e-8; then
    one of them is not counted.

    Args:
        runs: Runs that were kept, in their order.

    Example:
        >>> seen = Seen()
        >>> seen.new(["a", "b"]), seen.new(["b", "c"])
        ([True, True], [True, True])
        >>> seen.add(["a", "b"])
        >>> Seen.from_state(seen.to_state()).new(["b", "c"])
        [False, True]
        >>> len(seen), [len(run) for run in Seen(seen.runs).runs]
        (2, [2])
    """

    def __init__(self, runs: Iterable["NDArray[np.uint64]"] = ()) -> None:
        self._runs = list(runs)
        self._kept = len(self._runs)

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    @property
    def runs(self) -> tuple["NDArray[np.uint64]", ...]:
        """The hashes, in sorted runs of falling length."""
        return tuple(self._runs)

    @property
    def n_kept(self) -> int:
        """How many of the first runs are still those that were given, or that `kept` was called with."""
        return self._kept

    def kept(self) -> None:
        """Is told that all runs have been kept."""
        self._kept = len(self._runs)

    def new(self, ids: Sequence[Any]) -> list[bool]:
        """Says of each id whether it was not added before."""
        found: list[bool] = (~self._known(_digests(ids))).tolist()
        return found

    def add(self, ids: Sequence[Any]) -> None:
        """Adds ids."""
        digests = np.unique(_digests(ids))
        self._append(digests[~self._known(digests)])

    def to_state(self) -> str:
        """Returns them as a text."""
        # Sorted, so that the same ids make the same text.
        numbers = np.sort(np.concatenate([np.empty(0, np.uint64), *self._runs]))
        return b64encode(numbers.astype(">u8").tobytes()).decode()

    @classmethod
    def from_state(cls, state: str) -> "Seen":
        """Reads what `to_state` wrote.

        Raises:
            InvalidInput: If it is something else.
        """
        try:
            data = b64decode(state, validate=True)
        except (TypeError, ValueError) as error:
            raise InvalidInput("state", state, f"be what to_state wrote ({error})") from None
        if len(data) % _DIGEST:
            raise InvalidInput("state", len(data), f"hold {_DIGEST} bytes an id")
        seen = cls()
        seen._append(np.unique(np.frombuffer(data, dtype=">u8").astype(np.uint64)))
        return seen

    def _known(self, digests: "NDArray[np.uint64]") -> "NDArray[np.bool_]":
        known = np.zeros(len(digests), dtype=bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, digests), len(run) - 1)
            known |= run[at] == digests
        return known

    def _append(self, run: "NDArray[np.uint64]") -> None:
        if not len(run):
            return
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        self._kept = min(self._kept, len(self._runs))
        self._runs.append(run)


def kept_ids(state: Mapping[str, Any], ids: Mapping[str, Seen] | None, name: str) -> Seen:
    """Returns ids by their name: those in a judge's state, or those that were kept apart from it.

    Raises:
        KeyError: If they are in neither.
        InvalidInput: If the state holds something else.
    """
    return Seen.from_state(state[name]) if name in state or ids is None else ids[name]


def _digests(ids: Sequence[Any]) -> "NDArray[np.uint64]":
    return np.frombuffer(b"".join(map(_digest, ids)), dtype=">u8").astype(np.uint64)


def _digest(one: object) -> bytes:
    # The number 7 and the text "7" are two units.
    text = one if type(one) is str else f"\0{type(one).__name__}:{one}"
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=_DIGEST).digest()
