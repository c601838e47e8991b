"""How long rows stay, what keeps them longer, and what of them does not stay as it was.

Rows go by age; a hold keeps those that a court or an open incident needs. Columns that say who somebody is may be
hashed or dropped at an age, long before the rows go.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vitok.clock import duration
from vitok.decisions.files import replace
from vitok.decisions.parts import parts_of
from vitok.decisions.rewriting import maintained, remove, rewrite
from vitok.decisions.segments import Segment, segments
from vitok.decisions.sidecars import OnSeal
from vitok.errors import InvalidInput, NotFound, StoreError

if TYPE_CHECKING:
    import polars as pl

HOLDS = "holds.json"
REDACTED_KEY = b"vitok.redacted"
Way = Literal["hash", "drop"]
_KEPT = ("decision_id", "system", "event_time", "ingest_time")


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Rows that stay whatever their age, and that nobody may delete.

    Attributes:
        name: Names it, such as `"incident-7"`; a later hold of the name takes its place.
        reason: Why, for people.
        since: Event time of the earliest row held, in microseconds.
        until: Event time at which it ends, in microseconds, exclusive.
        where: Columns and the text that each must have; all rows of the span by default.
    """

    name: str
    reason: str = ""
    since: int = 0
    until: int = 2**63 - 1
    where: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Retained:
    """What retention did to a log.

    Attributes:
        segments_removed: Segments that went whole.
        segments_rewritten: Segments of which some rows stayed.
        rows_removed: Rows that went.
        rows_held: Rows that were old enough and stayed because of a hold.
    """

    segments_removed: int
    segments_rewritten: int
    rows_removed: int
    rows_held: int

    def __str__(self) -> str:
        """Says it in one line."""
        return (
            f"{self.rows_removed:,} rows removed with {self.segments_removed:,} whole segments and from "
            f"{self.segments_rewritten:,} others; {self.rows_held:,} held"
        )


def holds(folder: str | Path) -> tuple[Hold, ...]:
    """Lists the holds on a log.

    Raises:
        StoreError: If the file is damaged: then nothing may be deleted.
    """
    path = Path(folder) / HOLDS
    try:
        return tuple(Hold(**item) for item in json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return ()
    except (ValueError, TypeError) as error:
        raise StoreError(f"{str(path)!r} is damaged ({error}): mend it, until then nothing is deleted") from error


def hold(folder: str | Path, held: Hold) -> None:
    """Holds rows of a log, from now on.

    Raises:
        InvalidInput: If the hold has no name, or ends before it begins.
        NotFound: If the folder holds no log.
        StoreError: If the disk refuses, or rows are being deleted now, which may be some of these: try again.
    """
    if not held.name:
        raise InvalidInput("name", held.name, "name the hold")
    if held.until <= held.since:
        raise InvalidInput("until", held.until, f"be after since, {held.since}")
    # Who deletes has read the holds before: a hold that comes meanwhile would keep nothing and say that it does.
    with maintained(_log(folder)):
        _keep_holds(Path(folder), [*(one for one in holds(folder) if one.name != held.name), held])


def release(folder: str | Path, name: str) -> None:
    """Ends a hold.

    Raises:
        NotFound: If there is no such hold, or no log.
        StoreError: If the disk refuses, or rows are being deleted now: try again.
    """
    with maintained(_log(folder)):
        found = holds(folder)
        if name not in {one.name for one in found}:
            raise NotFound("hold", name, [one.name for one in found])
        _keep_holds(Path(folder), [one for one in found if one.name != name])


def retain(
    folder: str | Path,
    keep: int | str,
    *,
    now: int,
    by_kind: Mapping[str, int | str] | None = None,
    on_seal: OnSeal | None = None,
) -> Retained:
    """Removes sealed rows that are old enough and that no hold keeps.

    A segment goes when all of it was learned of before the time that is kept; kinds of outcomes may have times of
    their own, and then go from a segment when all of the kind in it is old enough. Of a merged file each segment in it
    goes by itself.

    Args:
        folder: Folder of a log.
        keep: How long rows stay, such as `"400d"`, counted from their ingest time.
        now: The present, in microseconds.
        by_kind: How long outcomes of some kinds stay instead.
        on_seal: Makes the files beside segments that lose some of their rows.

    Raises:
        InvalidInput: If a time is not of that form, or a log of decisions has kinds.
        NotFound: If the folder holds no log.
        StoreError: If the disk refuses, or another process changes sealed segments.

    Example:
        >>> import tempfile
        >>> from vitok.clock import DAY
        >>> from vitok.decision import Outcome
        >>> from vitok.decisions import OutcomeLog, read
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, day in (("a", 1), ("b", 2), ("c", 30)):
        ...         with OutcomeLog(folder) as log:
        ...             one = Outcome(request_id=name, kind="fraud", value=1.0, event_time=1, ingest_time=day * DAY)
        ...             _ = log.append([one])
        ...     hold(folder, Hold(name="case 12", where={"request_id": "b"}))
        ...     print(retain(folder, "20d", now=31 * DAY))
        ...     read(folder)["request_id"].to_list()
        1 rows removed with 1 whole segments and from 0 others; 1 held
        ['b', 'c']
    """
    top = _log(folder)
    ages = {kind: duration(age) for kind, age in (by_kind or {}).items()}
    usual = duration(keep)
    n_removed = n_rewritten = rows_removed = rows_held = 0
    with maintained(top):
        kept = holds(top)
        for segment in segments(top):
            if not segment.sealed:
                continue
            old = _old(segment, usual, ages, now)
            if not old.any():
                continue
            held = held_rows(segment.path, kept) & old
            rows_held += int(held.sum())
            going = old & ~held
            if not going.any():
                continue
            rows_removed += int(going.sum())
            if going.all():
                n_removed += 1
                remove(top, segment.path)
            else:
                n_rewritten += 1
                rewrite(top, segment.path, keep=~going, on_seal=on_seal)
    return Retained(
        segments_removed=n_removed, segments_rewritten=n_rewritten, rows_removed=rows_removed, rows_held=rows_held
    )


def redact(
    folder: str | Path,
    columns: Mapping[str, Way],
    *,
    age: int | str,
    now: int,
    key: bytes,
    on_seal: OnSeal | None = None,
) -> int:
    """Hashes or drops columns of sealed segments that are old enough.

    A hashed text becomes the first 32 hex digits of HMAC-SHA256 under the key: equal texts stay equal, also across
    logs that are hashed with the same key, and nobody without the key can try texts. A dropped value becomes null
    where the column may be null, else an empty text, NaN or 0. What was done once is not done again; what was hashed
    may be dropped later. Rows under a hold are redacted only when the hold ends.

    Args:
        folder: Folder of a log.
        columns: Column names, as readers see them, and what happens to them.
        age: From which age on, counted from the newest ingest time of a segment.
        now: The present, in microseconds.
        key: At least 16 secret bytes.
        on_seal: Makes the files beside the segments anew, of the redacted rows; without it they go.

    Returns:
        How many segments were rewritten.

    Raises:
        InvalidInput: If a way is unknown, a column cannot be hashed or must stay, or the key is too short.
        NotFound: If the folder holds no log.
        StoreError: If the disk refuses, or another process changes sealed segments.
    """
    top = _log(folder)
    check_key(key)
    for name, way in columns.items():
        if way not in ("hash", "drop"):
            raise InvalidInput(f"columns.{name}", way, "be 'hash' or 'drop'")
        if name in _KEPT:
            raise InvalidInput("columns", name, "not be one of " + ", ".join(_KEPT))
    cutoff, n = now - duration(age), 0
    with maintained(top):
        kept = holds(top)
        for segment in segments(top):
            if not segment.sealed:
                continue
            schema = pq.read_schema(segment.path)
            done = _done(schema.metadata)
            left = {name: way for name, way in columns.items() if name in schema.names and _left(way, done.get(name))}
            if not left or _newest(segment.path) >= cutoff or held_rows(segment.path, kept).any():
                continue

            def change(table: pa.Table, left: Mapping[str, Way] = left) -> pa.Table:
                for name, way in left.items():
                    at = table.schema.get_field_index(name)
                    one = table.schema.field(at)
                    values = table.column(at).combine_chunks()
                    table = table.set_column(
                        at, one, _hashed(values, key, name) if way == "hash" else _dropped(one, values)
                    )
                return table

            notes = {REDACTED_KEY: json.dumps(done | left, sort_keys=True).encode()}
            rewrite(top, segment.path, change=change, notes=notes, on_seal=on_seal)
            n += 1
    return n


def _done(metadata: Mapping[bytes, bytes] | None) -> dict[str, Way]:
    found = json.loads((metadata or {}).get(REDACTED_KEY, b"{}"))
    # Older segments tell the columns and not what was done with them.
    return found if isinstance(found, dict) else dict.fromkeys(found, "hash")


def _left(way: Way, done: Way | None) -> bool:
    return done is None or (way == "drop" and done == "hash")


def held_rows(path: Path, kept: tuple[Hold, ...]) -> npt.NDArray[np.bool_]:
    """Says which rows of a sealed segment a hold keeps."""
    n = pq.read_metadata(path).num_rows
    held = np.zeros(n, bool)
    for one in kept:
        frame = _columns(path, ["event_time", *one.where])
        if set(one.where) <= set(frame.columns):
            times = frame["event_time"].to_physical().to_numpy()
            mine = (times >= one.since) & (times < one.until)
            for name, text in one.where.items():
                mine &= frame[name].cast(str).eq_missing(text).to_numpy()
            held |= mine
    return held


def keyed(key: bytes, text: str) -> str:
    """Returns the keyed hash of a text: 32 hex digits of HMAC-SHA256 (RFC 2104).

    Example:
        >>> keyed(b"0123456789abcdef", "17") == keyed(b"0123456789abcdef", "17") != keyed(b"another key, as long", "17")
        True
    """
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32]


def check_key(key: bytes) -> None:
    """Checks that a key is long enough to be a secret.

    Raises:
        InvalidInput: If it is not.
    """
    if len(key) < 16:
        raise InvalidInput("key", f"{len(key)} bytes", "be at least 16 secret bytes")


def _hashed(values: pa.Array, key: bytes, name: str) -> pa.Array:
    if not pa.types.is_string(values.type):
        raise InvalidInput(f"columns.{name}", str(values.type), "be text to be hashed", "Drop it instead")
    coded = values.dictionary_encode()
    hashes = [keyed(key, text) for text in coded.dictionary.to_pylist()]
    return pa.array(hashes, pa.string()).take(coded.indices)


def _dropped(one: pa.Field, values: pa.Array) -> pa.Array:
    if one.nullable:
        return pa.nulls(len(values), one.type)
    empty = "" if pa.types.is_string(one.type) else float("nan") if pa.types.is_floating(one.type) else 0
    return pa.array([empty], one.type).take(pa.array(np.zeros(len(values), np.int64)))


def _columns(path: Path, names: list[str]) -> "pl.DataFrame":
    import polars as pl

    frame = pl.scan_parquet(path, glob=False)
    there = frame.collect_schema().names()
    return frame.select([name for name in dict.fromkeys(names) if name in there]).collect()


def _newest(path: Path) -> int:
    return int(pc.max(pq.read_table(path, columns=["ingest_time"], partitioning=None)[0].cast(pa.int64())).as_py())


def _old(segment: Segment, usual: int, ages: Mapping[str, int], now: int) -> npt.NDArray[np.bool_]:
    frame = _columns(segment.path, ["ingest_time", "kind"] if ages else ["ingest_time"])
    if ages and "kind" not in frame.columns:
        raise InvalidInput("by_kind", list(ages), "be None for a log of decisions")
    metadata = pq.read_metadata(segment.path)
    parts = parts_of(metadata.metadata, number=segment.number, rows=metadata.num_rows)
    # Rows that are old together: of one segment, and of one kind where kinds have times of their own.
    part = np.repeat(np.arange(len(parts)), [one.rows for one in parts])
    group = part if not ages else part + len(parts) * (frame["kind"].rank("dense").to_numpy().astype(np.int64) - 1)
    limits = np.full(frame.height, now - usual)
    for kind, age in ages.items():
        limits[(frame["kind"] == kind).to_numpy()] = now - age
    newest = np.full(int(group.max()) + 1, np.iinfo(np.int64).min)
    np.maximum.at(newest, group, frame["ingest_time"].to_physical().to_numpy())
    old: npt.NDArray[np.bool_] = newest[group] < limits
    return old


def _log(folder: str | Path) -> Path:
    top = Path(folder)
    if not top.is_dir():
        raise NotFound("log", str(top))
    return top


def _keep_holds(folder: Path, kept: list[Hold]) -> None:
    path = folder / HOLDS
    try:
        replace(path, json.dumps([asdict(one) for one in kept], indent=1).encode())
    except OSError as error:
        raise StoreError(f"{str(path)!r} was not written ({error})") from error
