"""Hourly counts of what each version saw and said; any longer window is their sum, and rows are read only once."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitok.clock import HOUR, isoformat
from vitok.errors import Conflict, InvalidInput
from vitok.monitoring.database import Database
from vitok.monitoring.profile import PROBABILITY, ReferenceProfile
from vitok.stats import LatencyHistogram, count_matrix

if TYPE_CHECKING:
    import polars as pl

ALL_VERSIONS = "all"
_GROUPS = ("action", "route", "feature_status")
_COLUMNS = ("model_version", "event_time", PROBABILITY, "latency_us", *_GROUPS)
_SCHEMA = """
CREATE TABLE hour (
    version TEXT NOT NULL,
    hour INTEGER NOT NULL,
    n INTEGER NOT NULL,
    digest TEXT NOT NULL,
    counts BLOB NOT NULL,
    numbers TEXT NOT NULL,
    PRIMARY KEY (version, hour)
) STRICT;
CREATE INDEX hour_hour ON hour (hour, version, n);
CREATE TABLE progress (id INTEGER PRIMARY KEY CHECK (id = 1), position TEXT NOT NULL) STRICT;
"""


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

    def __str__(self) -> str:
        actions = ", ".join(f"{name} {count:,}" for name, count in sorted(self.actions.items()))
        return (
            f"{self.model_version}: {self.n:,} decisions, {isoformat(self.start)} to {isoformat(self.end)}"
            f" ({actions}; mean probability {self.mean_probability:.4g}; latency {self.latency})"
        )


@dataclass
class _Hour:
    """Counts of one version and hour before and after they are merged."""

    n: int
    counts: NDArray[np.int64]
    groups: dict[str, dict[str, int]]
    n_probability: int
    probability: float
    latency: LatencyHistogram

    def merge(self, other: "_Hour") -> None:
        self.counts = self.counts + other.counts
        self.n += other.n
        for group, found in other.groups.items():
            for name, count in found.items():
                self.groups[group][name] = self.groups[group].get(name, 0) + count
        self.n_probability += other.n_probability
        self.probability += other.probability
        self.latency.merge(other.latency)

    def numbers(self) -> str:
        return json.dumps(
            {
                "groups": self.groups,
                "n_probability": self.n_probability,
                "probability": self.probability,
                "latency": self.latency.to_dict(),
            },
            separators=(",", ":"),
        )

    @classmethod
    def read(cls, n: int, counts: bytes, numbers: str) -> "_Hour":
        data = json.loads(numbers)
        return cls(
            n=n,
            counts=np.frombuffer(counts, dtype="<i8").astype(np.int64, copy=False),
            groups=data["groups"],
            n_probability=data["n_probability"],
            probability=data["probability"],
            latency=LatencyHistogram.from_dict(data["latency"]),
        )


class Sketches:
    """Hourly counts of one decision log, in a SQLite file that any number of processes may read.

    The place in the log up to which was counted stands in the same transaction as the counts: a crash between
    reading the log and writing here neither loses a decision nor counts one twice.

    Args:
        path: The file; made where it does not exist.

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
        self._database = Database(path, schema=_SCHEMA, kind="sketches", version=1)

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
        _check(frame)
        work = []
        for version in frame["model_version"].unique(maintain_order=True).to_list():
            profile = profile_of(version)
            rows = frame.filter(frame["model_version"] == version)
            work.append((version, "" if profile is None else profile.digest, _sketch(rows, profile)))
        with self._database.writing() as transaction:
            if position is not None and not _move(transaction, tuple(position), since):
                return 0
            for version, digest, hours in work:
                self._merge(transaction, version, digest, hours)
        return frame.height

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

    def forget(self, before: int) -> int:
        """Deletes the hours that end at or before a time, in microseconds, and returns how many there were."""
        with self._database.writing() as transaction:
            return transaction.execute("DELETE FROM hour WHERE hour < ?", (before // HOUR,)).rowcount

    def _merge(self, transaction: Any, version: str, digest: str, hours: Mapping[int, _Hour]) -> None:
        for hour, fresh in hours.items():
            found = transaction.execute(
                "SELECT n, counts, numbers, digest FROM hour WHERE version = ? AND hour = ?", (version, hour)
            ).fetchone()
            total = fresh
            if found is not None:
                if found[3] != digest:
                    raise Conflict(
                        f"{version} was counted over bins {found[3] or 'of no profile'}, not"
                        f" {digest or 'of no profile'}: a version keeps the profile that it was registered with"
                    )
                total = _Hour.read(*found[:3])
                total.merge(fresh)
            transaction.execute(
                "INSERT OR REPLACE INTO hour (version, hour, n, digest, counts, numbers) VALUES (?, ?, ?, ?, ?, ?)",
                (version, hour, total.n, digest, total.counts.astype("<i8").tobytes(), total.numbers()),
            )

    def _sum(self, name: str, start: int, end: int, where: str, key: tuple[str, ...]) -> WindowCounts | None:
        low, high = _hours(start, end)
        counts_of = "counts" if key else "x''"
        sql = f"SELECT hour, n, {counts_of}, numbers, digest FROM hour WHERE {where} ORDER BY hour, version"  # noqa: S608
        rows = self._database.read(sql, (*key, low, high))
        if not rows:
            return None
        digests = {row[4] for row in rows}
        if key and len(digests) > 1:
            raise Conflict(f"{name} was counted over several bins within the window: {', '.join(sorted(digests))}")
        total = _Hour.read(*rows[0][1:4])
        for row in rows[1:]:
            total.merge(_Hour.read(*row[1:4]))
        return WindowCounts(
            model_version=name,
            start=start,
            end=end,
            n=total.n,
            n_hours=len({row[0] for row in rows}),
            digest=digests.pop() if key else "",
            counts=total.counts,
            actions=total.groups["action"],
            routes=total.groups["route"],
            feature_status=total.groups["feature_status"],
            n_probability=total.n_probability,
            mean_probability=total.probability / total.n_probability if total.n_probability else math.nan,
            latency=total.latency,
        )


def _hours(start: int, end: int) -> tuple[int, int]:
    if start % HOUR or end % HOUR or start > end:
        raise InvalidInput("start, end", (start, end), "be full hours in microseconds, start first")
    return start // HOUR, end // HOUR


def _check(frame: "pl.DataFrame") -> None:
    missing = [name for name in _COLUMNS if name not in frame.columns]
    if missing:
        raise InvalidInput(
            "frame: columns", missing, "be there", "Pass rows of a decision log, as Tail.read gives them"
        )
    for name in ("model_version", "event_time", "latency_us", *_GROUPS):
        if frame[name].null_count():
            raise InvalidInput(f"frame: {name}", None, "have a value in every row")


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


def _sketch(rows: "pl.DataFrame", profile: ReferenceProfile | None) -> dict[int, _Hour]:
    import polars as pl

    of_row = rows["event_time"].to_physical().cast(pl.Int64).to_numpy() // HOUR
    order = np.argsort(of_row, kind="stable")
    hours, starts = np.unique(of_row[order], return_index=True)
    ends = np.append(starts[1:], len(order))
    names = ["f_" + name for name in profile.names] if profile else []
    missing = [name for name in names if name not in rows.columns]
    if missing:
        raise InvalidInput("frame: columns", missing, "be there", "Its features are not those of the version's profile")
    columns = [*names, PROBABILITY]
    # Rows of an hour lie together, so that each count reads one stretch of memory of one layout.
    X = np.empty((len(order), len(columns)))
    for at, name in enumerate(columns):
        X[:, at] = rows[name].cast(pl.Float64).fill_null(math.nan).to_numpy()[order]
    latency = rows["latency_us"].to_numpy()[order]
    groups = _group_counts(rows.with_columns(pl.Series("_hour", of_row)))
    found = {}
    for hour, first, last in zip(hours.tolist(), starts.tolist(), ends.tolist(), strict=True):
        counts = count_matrix(profile.edges, X[first:last]) if profile else ()
        answered = X[first:last, -1]
        answered = answered[np.isfinite(answered)]
        latencies = LatencyHistogram()
        latencies.record_many(latency[first:last])
        found[hour] = _Hour(
            n=last - first,
            counts=np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64),
            groups=groups[hour],
            n_probability=len(answered),
            probability=float(answered.sum()),
            latency=latencies,
        )
    return found


def _group_counts(rows: "pl.DataFrame") -> dict[int, dict[str, dict[str, int]]]:
    found: dict[int, dict[str, dict[str, int]]] = {}
    for group in _GROUPS:
        for hour, name, count in rows.group_by("_hour", group).len().sort("_hour", group).iter_rows():
            found.setdefault(hour, {each: {} for each in _GROUPS})[group][name] = count
    return found
