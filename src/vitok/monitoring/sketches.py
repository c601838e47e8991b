"""Hourly counts of what each version saw and said; any longer window is their sum, and rows are read only once."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitok.clock import HOUR, isoformat
from vitok.engines.sqlite import Database
from vitok.errors import Conflict, InvalidInput
from vitok.monitoring.counting import count_hours
from vitok.monitoring.hours import HourlyCounts, add_numbers, decode
from vitok.monitoring.profile import ReferenceProfile
from vitok.stats import LatencyHistogram

if TYPE_CHECKING:
    import polars as pl

ALL_VERSIONS = "all"
_SCHEMA = """
CREATE TABLE hour (
    version TEXT NOT NULL,
    hour INTEGER NOT NULL,
    n INTEGER NOT NULL,
    digest TEXT NOT NULL,
    counts BLOB NOT NULL,
    numbers TEXT NOT NULL,
    joint BLOB NOT NULL,
    PRIMARY KEY (version, hour)
) STRICT;
CREATE INDEX hour_hour ON hour (hour, version, n);
CREATE TABLE slice (
    version TEXT NOT NULL,
    hour INTEGER NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    n INTEGER NOT NULL,
    counts BLOB NOT NULL,
    PRIMARY KEY (version, hour, name, value)
) STRICT;
CREATE TABLE absorbed (name TEXT PRIMARY KEY) STRICT;
CREATE TABLE progress (id INTEGER PRIMARY KEY CHECK (id = 1), position TEXT NOT NULL) STRICT;
"""
_TABLES = ("hour", "slice", "absorbed", "progress")
# All of it is counted from the log: what an older vitok counted is counted anew, from the log's first row on.
_ANEW = "".join(f"DROP TABLE IF EXISTS {table};\n" for table in _TABLES) + _SCHEMA


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowCounts:
    """What a version saw and said in a window of whole hours.

    Attributes:
        model_version: Which version; `"all"` for all of the log.
        start: When the window begins, in microseconds.
        end: When it ends, not included.
        n: Decisions.
        n_hours: Hours that have any.
        digest: `ReferenceProfile.digest` of the bins; empty where the version has none.
        counts: Decisions in the bins of each column of the profile, end to end, int64.
        actions: Decisions by action.
        routes: Decisions by route.
        feature_status: Decisions by the worst status among their features.
        n_probability: Decisions that have a probability.
        mean_probability: Their mean; NaN where there is none.
        latency: Latencies in microseconds.
        joint: Sums of the profile's random features; empty where it has none.
    """

    model_version: str
    start: int
    end: int
    n: int
    n_hours: int
    digest: str
    counts: NDArray[np.int64]
    actions: Mapping[str, int]
    routes: Mapping[str, int]
    feature_status: Mapping[str, int]
    n_probability: int
    mean_probability: float
    latency: LatencyHistogram
    joint: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def __str__(self) -> str:
        actions = ", ".join(f"{name} {count:,}" for name, count in sorted(self.actions.items()))
        return (
            f"{self.model_version}: {self.n:,} decisions, {isoformat(self.start)} to {isoformat(self.end)}"
            f" ({actions}; mean probability {self.mean_probability:.4g}; latency {self.latency})"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SliceCounts:
    """What a version saw in one slice of a window.

    Attributes:
        column: The slice column.
        value: Its value, or `"other"`.
        n: Decisions.
        counts: Decisions in the bins of each column of the profile, end to end, int64.
    """

    column: str
    value: str
    n: int
    counts: NDArray[np.int64]


class Sketches:
    """Hourly counts of one decision log, in a SQLite file that any number of processes may read.

    The place in the log up to which was counted stands in the same transaction as the counts: a crash between
    reading the log and writing here neither loses a decision nor counts one twice.

    Args:
        path: The file; made where it does not exist. One that an older vitok made is emptied, with its place in the
            log, so that whoever follows the log counts anew what the log still has.

    Raises:
        StoreError: If the file cannot be opened, or is something else.

    Example:
        >>> import tempfile
        >>> import polars as pl
        >>> day = 86_400_000_000
        >>> frame = pl.DataFrame({
        ...     "event_time": [0, 5, HOUR], "model_version": ["fraud/1"] * 3, "probability": [0.1, 0.2, 0.3],
        ...     "latency_us": [900, 1_000, 1_100], "action": ["allow", "allow", "block"], "route": ["champion"] * 3,
        ...     "feature_status": ["fresh"] * 3, "f_amount": [3.0, 4.0, 5.0]})
        >>> profile = ReferenceProfile.fit(["amount"], [[3.0], [4.0]], [0.1, 0.2], start=0, end=day)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sketches = Sketches(Path(folder) / "sketches.sqlite")
        ...     counted = [sketches.add(frame, profile, position=(1, 3)) for _ in range(2)]
        ...     window = sketches.window("fraud/1", 0, day)
        ...     sketches.close()
        >>> counted, window.n, window.actions["allow"]
        ([3, 0], 3, 2)
    """

    def __init__(self, path: str | Path) -> None:
        self._database = Database(path, schema=_SCHEMA, kind="sketches", version=2, migrations={1: _ANEW})

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def add(
        self,
        frame: "pl.DataFrame",
        profile: ReferenceProfile | None,
        *,
        position: Sequence[int] | None = None,
        since: Sequence[int] | None = None,
    ) -> int:
        """Counts the decisions of one version.

        Args:
            frame: Rows of the log as `Tail.read` gives them, all of one `model_version`, of any hours.
            profile: The version's reference profile; None where it has none, such as rules: then only numbers are
                kept.
            position: Where the log stands after these rows (`Tail.position`). Rows up to a position that was
                counted before change nothing. None adds in any case.
            since: The position that this reader had before; another one in the file means a second reader.

        Returns:
            How many decisions were counted: all, or 0 where they had been before.

        Raises:
            InvalidInput: If a column is missing, a time is null, or there are several versions; see `follow`.
            Conflict: If the version was counted over other bins, or another reader moved the position.
            StoreError: If the file cannot be written; nothing was counted then.
        """
        versions = frame["model_version"].unique().to_list() if "model_version" in frame.columns else []
        if len(versions) > 1:
            raise InvalidInput("frame: model_version", versions, "be one version", "Sketches.follow takes several")
        return self.follow(frame, lambda _: profile, position=position, since=since)

    def follow(
        self,
        frame: "pl.DataFrame",
        profile_of: Callable[[str], ReferenceProfile | None],
        *,
        position: Sequence[int] | None = None,
        since: Sequence[int] | None = None,
    ) -> int:
        """Counts decisions of any versions, as they come from the log, in one transaction; see `add`.

        Args:
            frame: Rows of the log.
            profile_of: Gives the reference profile of a version, or None where it has none.
            position: Where the log stands after these rows.
            since: The position that this reader had before.

        Returns:
            How many decisions were counted.
        """
        work = count_hours(frame, profile_of)
        with self._database.writing() as transaction:
            if position is not None and not _move(transaction, tuple(position), since):
                return 0
            for counted in work:
                self._merge(transaction, counted)
        return frame.height

    def absorb(
        self,
        sealed: Iterable[tuple[str, bytes]],
        *,
        position: Sequence[int] | None = None,
        since: Sequence[int] | None = None,
    ) -> int:
        """Takes up counts that were made when segments were sealed, each segment once; no row is read.

        A reader that also follows the log says with `position` that it has these segments now: those of which it has
        read rows before would count twice.

        Args:
            sealed: Name and bytes of each segment, as `HourSealer` made them and `decisions.sidecars` gives them.
            position: Where the log stands after these segments. Where the file is there or further, nothing changes.
            since: The position that this reader had before; another one in the file means a second reader.

        Returns:
            How many decisions were counted.

        Raises:
            InvalidInput: If the bytes are something else.
            Conflict: If a version was counted over other bins, or another reader moved the position.
            StoreError: If the file cannot be written; nothing was counted then.

        Example:
            >>> import tempfile
            >>> from vitok.monitoring.hours import encode
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     sketches = Sketches(Path(folder) / "sketches.sqlite")
            ...     print(sketches.absorb([("segment-00000001", encode([]))]))
            ...     sketches.close()
            0
        """
        n = 0
        with self._database.writing() as transaction:
            if position is not None and not _move(transaction, tuple(position), since):
                return 0
            for name, data in sealed:
                added = transaction.execute("INSERT OR IGNORE INTO absorbed VALUES (?)", (name,)).rowcount
                if added:
                    for counted in decode(data):
                        self._merge(transaction, counted)
                        n += counted.n_total
        return n

    def position(self) -> tuple[int, ...] | None:
        """Returns where the log stood at the last count, for a new `Tail`; None before the first."""
        return _position(self._database.read("SELECT position FROM progress"))

    def window(self, model_version: str, start: int, end: int) -> WindowCounts | None:
        """Adds up the hours of a version in `[start, end)`.

        Args:
            model_version: Which version.
            start: A full hour, in microseconds.
            end: A full hour after it.

        Returns:
            The sum; None where there are no decisions.

        Raises:
            InvalidInput: If the window is not of whole hours.
            Conflict: If the version's bins changed within the window.
        """
        return self._sum(model_version, start, end, "version = ? AND hour >= ? AND hour < ?", (model_version,))

    def totals(self, start: int, end: int) -> WindowCounts | None:
        """Adds up the hours of all versions in `[start, end)`: the numbers, without the counts of bins.

        Raises:
            InvalidInput: If the window is not of whole hours.
        """
        return self._sum(ALL_VERSIONS, start, end, "hour >= ? AND hour < ?", ())

    def versions(self, start: int, end: int) -> dict[str, int]:
        """Returns the versions that decided in `[start, end)` with how many decisions, sorted by name."""
        low, high = _hours(start, end)
        sql = "SELECT version, sum(n) FROM hour WHERE hour >= ? AND hour < ? GROUP BY version ORDER BY version"
        return dict(self._database.read(sql, (low, high)))

    def hours(self, model_version: str | None = None) -> tuple[int, ...]:
        """Returns the beginnings of the hours that have decisions, ascending, in microseconds.

        Args:
            model_version: Of which version; None for any.
        """
        sql = "SELECT DISTINCT hour FROM hour WHERE ?1 IS NULL OR version = ?1 ORDER BY hour"
        return tuple(row[0] * HOUR for row in self._database.read(sql, (model_version,)))

    def series(self, model_version: str, start: int, end: int) -> HourlyCounts | None:
        """Returns the hours of a version in `[start, end)` one by one, without slices; None where there are none.

        Raises:
            InvalidInput: If the window is not of whole hours.
            Conflict: If the version's bins changed within the window.
        """
        low, high = _hours(start, end)
        sql = (
            "SELECT hour, n, counts, numbers, joint, digest FROM hour"
            " WHERE version = ? AND hour >= ? AND hour < ? ORDER BY hour"
        )
        rows = self._database.read(sql, (model_version, low, high))
        if not rows:
            return None
        digest = _one_digest(model_version, {row[5] for row in rows})
        none = np.zeros(0, dtype=np.int64)
        counts = np.frombuffer(b"".join(row[2] for row in rows), dtype="<i8").reshape(len(rows), -1)
        return HourlyCounts(
            version=model_version,
            digest=digest,
            hours=np.array([row[0] for row in rows], dtype=np.int64),
            n=np.array([row[1] for row in rows], dtype=np.int64),
            counts=counts,
            numbers=tuple(row[3] for row in rows),
            slices=(),
            slice_at=none.reshape(0, 2),
            slice_n=none,
            slice_counts=none.reshape(0, counts.shape[1]),
            joint=np.frombuffer(b"".join(row[4] for row in rows), dtype="<f8").reshape(len(rows), -1),
        )

    def slices(self, model_version: str, start: int, end: int) -> tuple[SliceCounts, ...]:
        """Adds up the hours of a version in `[start, end)` slice by slice; empty where its profile has no slices.

        Raises:
            InvalidInput: If the window is not of whole hours.
        """
        low, high = _hours(start, end)
        sql = (
            "SELECT name, value, n, counts FROM slice WHERE version = ? AND hour >= ? AND hour < ? ORDER BY name, value"
        )
        found: dict[tuple[str, str], tuple[int, NDArray[np.int64]]] = {}
        for name, value, n, counts in self._database.read(sql, (model_version, low, high)):
            before = found.get((name, value))
            fresh = np.frombuffer(counts, dtype="<i8")
            found[name, value] = (n, fresh) if before is None else (before[0] + n, before[1] + fresh)
        return tuple(
            SliceCounts(column=column, value=value, n=n, counts=counts)
            for (column, value), (n, counts) in found.items()
        )

    def volumes(self, start: int, end: int) -> dict[int, int]:
        """Returns how many decisions each hour of `[start, end)` has, by its beginning in microseconds; 0 where none.

        Raises:
            InvalidInput: If the window is not of whole hours.
        """
        low, high = _hours(start, end)
        found = dict(
            self._database.read("SELECT hour, sum(n) FROM hour WHERE hour >= ? AND hour < ? GROUP BY hour", (low, high))
        )
        return {hour * HOUR: int(found.get(hour, 0)) for hour in range(low, high)}

    def forget(self, before: int) -> int:
        """Deletes the hours that end at or before a time, in microseconds, and returns how many there were."""
        with self._database.writing() as transaction:
            transaction.execute("DELETE FROM slice WHERE hour < ?", (before // HOUR,))
            return transaction.execute("DELETE FROM hour WHERE hour < ?", (before // HOUR,)).rowcount

    def _merge(self, transaction: Any, counted: HourlyCounts) -> None:
        version, digest = counted.version, counted.digest
        for at, hour in enumerate(counted.hours.tolist()):
            n, counts, joint = int(counted.n[at]), counted.counts[at].astype("<i8"), counted.joint[at].astype("<f8")
            numbers = counted.numbers[at]
            found = transaction.execute(
                "SELECT n, counts, numbers, joint, digest FROM hour WHERE version = ? AND hour = ?", (version, hour)
            ).fetchone()
            if found is not None:
                if found[4] != digest:
                    raise Conflict(
                        f"{version} was counted over bins {found[4] or 'of no profile'}, not"
                        f" {digest or 'of no profile'}: a version keeps the profile that it was registered with"
                    )
                n, counts = n + found[0], counts + np.frombuffer(found[1], dtype="<i8")
                numbers, joint = add_numbers(found[2], numbers), joint + np.frombuffer(found[3], dtype="<f8")
            row = (version, hour, n, digest, counts.tobytes(), numbers, joint.tobytes())
            transaction.execute("INSERT OR REPLACE INTO hour VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        for (at, which), n, counts in zip(
            counted.slice_at.tolist(), counted.slice_n.tolist(), counted.slice_counts.astype("<i8"), strict=True
        ):
            key = (version, int(counted.hours[at]), *counted.slices[which])
            found = transaction.execute(
                "SELECT n, counts FROM slice WHERE version = ? AND hour = ? AND name = ? AND value = ?", key
            ).fetchone()
            total, sums = n, counts
            if found is not None:
                total, sums = n + found[0], counts + np.frombuffer(found[1], dtype="<i8")
            transaction.execute("INSERT OR REPLACE INTO slice VALUES (?, ?, ?, ?, ?, ?)", (*key, total, sums.tobytes()))

    def _sum(self, name: str, start: int, end: int, where: str, key: tuple[str, ...]) -> WindowCounts | None:
        low, high = _hours(start, end)
        bins = "counts, joint" if key else "x'', x''"
        sql = f"SELECT hour, n, {bins}, numbers, digest FROM hour WHERE {where} ORDER BY hour, version"  # noqa: S608
        rows = self._database.read(sql, (*key, low, high))
        if not rows:
            return None
        digest = _one_digest(name, {row[5] for row in rows}) if key else ""
        groups: dict[str, dict[str, int]] = {"action": {}, "route": {}, "feature_status": {}}
        latency = LatencyHistogram()
        n_probability, probability = 0, 0.0
        for row in rows:
            numbers = json.loads(row[4])
            latency.merge(LatencyHistogram.from_dict(numbers["latency"]))
            n_probability += numbers["n_probability"]
            probability += numbers["probability"]
            for group, found in numbers["groups"].items():
                for value, count in found.items():
                    groups[group][value] = groups[group].get(value, 0) + count
        return WindowCounts(
            model_version=name,
            start=start,
            end=end,
            n=sum(row[1] for row in rows),
            n_hours=len({row[0] for row in rows}),
            digest=digest,
            counts=_summed([row[2] for row in rows], "<i8").astype(np.int64, copy=False),
            actions=groups["action"],
            routes=groups["route"],
            feature_status=groups["feature_status"],
            n_probability=n_probability,
            mean_probability=probability / n_probability if n_probability else math.nan,
            latency=latency,
            joint=_summed([row[3] for row in rows], "<f8"),
        )


def _summed(blobs: Sequence[bytes], dtype: str) -> NDArray[Any]:
    return np.asarray(np.frombuffer(b"".join(blobs), dtype=dtype).reshape(len(blobs), -1).sum(axis=0))


def _one_digest(version: str, digests: set[str]) -> str:
    if len(digests) > 1:
        raise Conflict(f"{version} was counted over several bins within the window: {', '.join(sorted(digests))}")
    return digests.pop()


def _hours(start: int, end: int) -> tuple[int, int]:
    if start % HOUR or end % HOUR or start > end:
        raise InvalidInput("start, end", (start, end), "be full hours in microseconds, start first")
    return start // HOUR, end // HOUR


def _position(rows: Sequence[Sequence[str]]) -> tuple[int, ...] | None:
    return tuple(json.loads(rows[0][0])) if rows else None


def _move(transaction: Any, position: tuple[int, ...], since: Sequence[int] | None) -> bool:
    stored = _position(transaction.execute("SELECT position FROM progress").fetchall())
    if stored is not None and position <= stored:
        return False
    if since is not None and tuple(since) != (stored or (0,) * len(since)):
        raise Conflict(f"the sketches stand at {stored}, not at {tuple(since)}: another reader follows this log")
    transaction.execute("INSERT OR REPLACE INTO progress VALUES (1, ?)", (json.dumps(position),))
    return True
