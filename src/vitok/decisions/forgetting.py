"""Deleting one subject from the logs, with a receipt that can be checked.

The receipt tells which segments were written anew and how many rows each had before and after. It names nobody: the
subject and his requests stand there as keyed hashes. Receipts are chained and signed with the same key.
"""

import contextlib
import hashlib
import hmac
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vitok.decisions.files import replace as write_file
from vitok.decisions.files import sync
from vitok.decisions.log import DecisionLog, OutcomeLog, declared_schema
from vitok.decisions.parts import parts_of, sealed_rows
from vitok.decisions.reading import open_table
from vitok.decisions.retention import check_key, held_rows, holds, keyed
from vitok.decisions.rewriting import maintained, rewrite
from vitok.decisions.schema import outcome_schema
from vitok.decisions.segments import Segment, numbers, segment_name, segments
from vitok.decisions.sidecars import OnSeal
from vitok.decisions.writer import SegmentWriter
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError

if TYPE_CHECKING:
    import polars as pl

RECEIPTS = "receipts.jsonl"
BEGUN = "forgetting.json"
FORGOTTEN = "forgotten.json"
_LOGS = ("decisions", "outcomes")
# A segment of a log, and which of its rows stay.
_Planned = tuple[str, Segment, npt.NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """A segment that lost rows.

    Attributes:
        log: `"decisions"` or `"outcomes"`.
        segment: Its name.
        rows_before: How many rows it had.
        rows_after: How many it has; the file is gone where this is 0.
        sha256: Of the file as it is now, in hex; empty where it is gone.
    """

    log: str
    segment: str
    rows_before: int
    rows_after: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What was deleted, so that it can be proved.

    Attributes:
        subject: Keyed hash of the column and its value.
        at: When, in microseconds.
        changes: The segments that lost rows.
        requests: Keyed hashes of the subject's request ids, by which late outcomes are known.
        damaged: Names of files kept after a damage that held the value, and were removed.
        previous: SHA-256 of the receipt before this one; empty for the first.
        signature: HMAC-SHA256 over all of the above, in hex.
    """

    subject: str
    at: int
    changes: tuple[Rewritten, ...]
    requests: tuple[str, ...]
    damaged: tuple[str, ...]
    previous: str
    signature: str = ""

    @property
    def rows_removed(self) -> int:
        """How many rows went."""
        return sum(change.rows_before - change.rows_after for change in self.changes)

    def __str__(self) -> str:
        """Returns it as lines."""
        lines = [f"{self.rows_removed:,} rows of subject {self.subject} removed from {len(self.changes)} segments"]
        for one in self.changes:
            lines.append(f"{one.log}/{one.segment}: {one.rows_before:,} rows before, {one.rows_after:,} after")
        return "\n".join([*lines, f"signed {self.signature}"])

    def to_dict(self) -> dict[str, Any]:
        """Returns it ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Receipt":
        """Reads what `to_dict` wrote."""
        changes = tuple(Rewritten(**one) for one in data["changes"])
        listed = {name: tuple(data[name]) for name in ("requests", "damaged")}
        return cls(**{**data, **listed, "changes": changes})


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What a second look at the disk says about a receipt.

    Attributes:
        signed: Whether the receipt is as it was written, by who has the key.
        chained: Whether it stands in the file of receipts, each of which follows from the one before.
        decisions_found: Rows of the subject that are in the log of decisions, open segments among them.
        outcomes_found: Outcomes of the subject's requests, late ones among them.
        changed_since: Segments that are not the files that were written then, as a later deletion leaves them.
    """

    signed: bool
    chained: bool
    decisions_found: int
    outcomes_found: int
    changed_since: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether the receipt is genuine and nothing of the subject was found."""
        return self.signed and self.chained and not self.decisions_found and not self.outcomes_found

    def __str__(self) -> str:
        """Says it in one line."""
        genuine = "genuine" if self.signed and self.chained else "NOT genuine"
        return (
            f"the receipt is {genuine}; found {self.decisions_found} decisions and {self.outcomes_found} outcomes of "
            f"the subject; {len(self.changed_since)} segments changed since"
        )


def forget(
    folder: str | Path,
    column: str,
    value: str,
    *,
    key: bytes,
    now: int,
    open_logs: Sequence[DecisionLog | OutcomeLog] = (),
    on_seal: OnSeal | None = None,
) -> Receipt:
    """Deletes the decisions of one subject and their outcomes, and writes a receipt.

    Killed at any moment, it is done again by calling it again, and the receipt then tells of both runs. Segments that
    are open are sealed first. Files beside segments that lose rows, such as histograms, are made
    anew with `on_seal`; without it they go, and `reseal` makes them. What was shipped to a store follows with the next
    `ship`; rows that only the store has, since they were too old for the log, `shipping.forget_shipped` deletes there.

    Args:
        folder: The folder above both logs, such as `<home>/log`.
        column: The column that names the subject, such as `"customer_id"`.
        value: The subject in it.
        key: At least 16 secret bytes, for the hashes and the signature.
        now: The present, in microseconds.
        open_logs: The logs of this folder that this process writes now.
        on_seal: Makes the files beside segments of decisions.

    Raises:
        InvalidInput: If the key is too short.
        NotFound: If there is no log, or neither a segment nor the latest writer has such a column.
        Conflict: If a hold keeps rows of the subject; nothing is deleted then.
        StoreError: If another process has rows of the subject in an open segment (nothing is deleted then), or the
            disk refuses.
    """
    top = Path(folder)
    check_key(key)
    if not (top / "decisions").is_dir():
        raise NotFound("log", str(top / "decisions"))
    for log in open_logs:
        log.seal()
    for name in _LOGS:
        _seal_left(top / name)
    subject = keyed(key, f"{column}={value}")
    with contextlib.ExitStack() as locks:
        # All of them before anything is looked up: what is planned must not change until it is done.
        for folder_of in (top, *(top / name for name in _LOGS if (top / name).is_dir())):
            locks.enter_context(maintained(folder_of))
        _sweep(top)
        requests = _requests(top / "decisions", column, value)
        plan = _plan(top, column, value, requests)
        begun = _begun(top)
        before = begun.get(subject, {"requests": [], "changes": []})
        hashes = sorted({keyed(key, request) for request in requests} | set(before["requests"]))
        planned = {(name, segment.name) for name, segment, _ in plan}
        # What a run did that was killed before its receipt was written belongs on this one.
        earlier = [one for one in before["changes"] if (one[0], one[1]) not in planned]
        fresh = [[name, segment.name, len(keep), int(keep.sum())] for name, segment, keep in plan]
        _keep_begun(top, begun | {subject: {"requests": hashes, "changes": [*earlier, *fresh]}})
        _keep_forgotten(top, plan)
        for name, segment, keep in plan:
            hook = on_seal if name == "decisions" else None
            rewrite(top / name, segment.path, keep=keep, on_seal=hook)
        sought = [value.encode(), *(request.encode() for request in requests)]
        damaged = [
            path for name in _LOGS for path in (top / name).glob("*.damaged") if _holds_any(path.read_bytes(), sought)
        ]
        for path in damaged:
            path.unlink()
        lines = _lines(top)
        paths = _sealed_paths(top)
        receipt = Receipt(
            subject=subject,
            at=now,
            changes=tuple(
                Rewritten(
                    log=name,
                    segment=segment_name,
                    rows_before=rows_before,
                    rows_after=rows_after,
                    sha256=_digest(paths[name, segment_name]) if (name, segment_name) in paths else "",
                )
                for name, segment_name, rows_before, rows_after in [*earlier, *fresh]
            ),
            requests=tuple(hashes),
            damaged=tuple(path.name for path in damaged),
            previous=hashlib.sha256(lines[-1]).hexdigest() if lines else "",
        )
        receipt = replace(receipt, signature=_signature(receipt, key))
        # All receipts anew, in one step: half a line would make every later one unreadable.
        written = json.dumps(receipt.to_dict()).encode()
        write_file(top / RECEIPTS, b"".join(line + b"\n" for line in [*lines, written]))
        _keep_begun(top, {name: one for name, one in begun.items() if name != subject})
    return receipt


def verify(folder: str | Path, receipt: Receipt, column: str, value: str, *, key: bytes) -> Verified:
    """Reads both logs again and checks a receipt against them.

    Args:
        folder: The folder above both logs.
        receipt: As `forget` gave it, or `receipts` reads it.
        column: The column that named the subject.
        value: The subject.
        key: The key of the receipt.

    Raises:
        InvalidInput: If the receipt is of another subject, or of another key.
    """
    top = Path(folder)
    if receipt.subject != keyed(key, f"{column}={value}"):
        raise InvalidInput("receipt", receipt.subject, "be of this subject, made with this key")
    found = outcomes = 0
    hashes = set(receipt.requests)
    for _, frame in _frames(top / "decisions", [column]):
        found += int((frame[column] == value).sum()) if column in frame.columns else 0
    for _, frame in _frames(top / "outcomes", ["request_id"]):
        outcomes += sum(keyed(key, request) in hashes for request in frame["request_id"]) if hashes else 0
    named = {(one.log, one.segment) for one in receipt.changes}
    digests = _digests(top, named)
    differing = [
        f"{one.log}/{one.segment}"
        for one in receipt.changes
        if digests.get((one.log, one.segment), "" if one.rows_after else one.sha256) != one.sha256
    ]
    signed = hmac.compare_digest(receipt.signature, _signature(receipt, key))
    return Verified(
        signed=signed,
        chained=receipt in receipts(top) and _chained(top),
        decisions_found=found,
        outcomes_found=outcomes,
        changed_since=tuple(differing),
    )


def receipts(folder: str | Path) -> tuple[Receipt, ...]:
    """Reads the receipts of all deletions, oldest first.

    Raises:
        StoreError: If the file is damaged.
    """
    try:
        return tuple(Receipt.from_dict(json.loads(line)) for line in _lines(Path(folder)))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{str(Path(folder) / RECEIPTS)!r} is damaged ({error}); restore it from a backup") from error


def forgotten(folder: str | Path) -> dict[int, int]:
    """Tells how many rows deletions have left of the segments that lost some, also where the rest went later by age.

    Args:
        folder: Folder of a log.

    Returns:
        By the number of the segment, whether it is merged with others or not.

    Raises:
        StoreError: If the file is damaged.
    """
    path = Path(folder) / FORGOTTEN
    try:
        return {int(number): int(rows) for number, rows in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise StoreError(f"{str(path)!r} is damaged ({error}); restore it from a backup") from error


def _keep_forgotten(top: Path, plan: Iterable[_Planned]) -> None:
    left: dict[str, dict[int, int]] = {}
    for name, segment, keep in plan:
        metadata = pq.read_metadata(segment.path).metadata
        parts = parts_of(metadata, number=segment.number, rows=len(keep))
        each = np.split(keep, np.cumsum([one.rows for one in parts])[:-1])
        losing = {one.number: int(mine.sum()) for one, mine in zip(parts, each, strict=True) if not mine.all()}
        left.setdefault(name, forgotten(top / name)).update(losing)
    for name, rows in left.items():
        write_file(top / name / FORGOTTEN, json.dumps(rows).encode())


def _plan(top: Path, column: str, value: str, requests: set[str]) -> list[_Planned]:
    plan = []
    # Outcomes first: were the process killed in between, the decisions would still say whose outcomes to look for.
    for name, by, wanted in (("outcomes", "request_id", sorted(requests)), ("decisions", column, [value])):
        kept = holds(top / name)
        for segment, frame in _frames(top / name, [by]):
            if by not in frame.columns:
                continue
            hit = frame[by].is_in(wanted).fill_null(False).to_numpy()
            if not hit.any():
                continue
            if not segment.sealed:
                raise StoreError(
                    f"log {str(top / name)!r}: another process has rows of the subject in {segment.path.name}, "
                    "which is open; stop that process, or do this in it and pass its logs as open_logs"
                )
            if (held_rows(segment.path, kept) & hit).any():
                names = ", ".join(one.name for one in kept)
                raise Conflict(f"rows of the subject are held by {names}: release the hold first, or wait for its end")
            plan.append((name, segment, ~hit))
    return plan


def _requests(folder: Path, column: str, value: str) -> set[str]:
    found: set[str] = set()
    known: set[str] = set()
    for _, frame in _frames(folder, [column, "request_id"]):
        if column in frame.columns:
            known.add(column)
            found.update(frame.filter(frame[column] == value)["request_id"])
    declared = (declared_schema(folder) or outcome_schema()).names
    # All decisions may have gone by age since a deletion was begun, and it must come to its end.
    if not known and column not in declared:
        raise NotFound("column", column, declared)
    return found


def _frames(folder: Path, columns: list[str]) -> "Iterable[tuple[Segment, pl.DataFrame]]":
    import polars as pl

    for segment in segments(folder):
        table = segment.path if segment.sealed else open_table(segment)
        # It may have been sealed since the folder was listed.
        path = table if isinstance(table, Path) else segment.path
        if isinstance(table, Path):
            table = sealed_rows(folder, segment, columns)
        if table is not None:
            frame = pl.from_arrow(table.select([name for name in columns if name in table.column_names]))
            assert isinstance(frame, pl.DataFrame)  # noqa: S101
            yield Segment(segment.number, path), frame


def _sealed_paths(top: Path) -> dict[tuple[str, str], Path]:
    return {(name, one.name): one.path for name in _LOGS for one in segments(top / name) if one.sealed}


def _digests(top: Path, named: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    # Of a segment that was merged since, the file that it was is known to the merged one.
    found: dict[tuple[str, str], str] = {}
    for (name, segment_name_), path in _sealed_paths(top).items():
        if (name, segment_name_) in named:
            found[name, segment_name_] = _digest(path)
        span = numbers(path.name)
        if span is not None and span[0] < span[1]:
            metadata = pq.read_metadata(path)
            parts = parts_of(metadata.metadata, number=span[1], rows=metadata.num_rows)
            found |= {(name, segment_name(one.number)): one.sha256 for one in parts}
    return found


def _begun(top: Path) -> dict[str, dict[str, list[Any]]]:
    try:
        found: dict[str, dict[str, list[Any]]] = json.loads((top / BEGUN).read_bytes())
        return found
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise StoreError(f"{str(top / BEGUN)!r} is damaged ({error}); restore it from a backup") from error


def _keep_begun(top: Path, begun: dict[str, dict[str, list[Any]]]) -> None:
    if begun:
        write_file(top / BEGUN, json.dumps(begun).encode())
    else:
        (top / BEGUN).unlink(missing_ok=True)
        sync(top)


def _sweep(folder: Path) -> None:
    # What was left half written when somebody was killed who changed a sealed segment, or merged some: it has rows too.
    for left in folder.rglob("segment-*.parquet.tmp"):
        span = numbers(left.stem)
        if left.with_suffix("").exists() or (span is not None and span[0] < span[1]):
            left.unlink(missing_ok=True)


def _holds_any(data: bytes, sought: list[bytes]) -> bool:
    return any(one in data for one in sought)


def _seal_left(folder: Path) -> None:
    # What a dead process left open; a living one says no, and whether that matters is seen later.
    if any(folder.glob("segment-*.arrows")):
        try:
            writer = SegmentWriter(folder, declared_schema(folder) or pa.schema([]))
        except StoreError:
            return
        writer.close()


def _signature(receipt: Receipt, key: bytes) -> str:
    content = receipt.to_dict() | {"signature": ""}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _lines(top: Path) -> list[bytes]:
    try:
        return (top / RECEIPTS).read_bytes().splitlines()
    except FileNotFoundError:
        return []


def _chained(top: Path) -> bool:
    lines = _lines(top)
    previous = ["", *(hashlib.sha256(line).hexdigest() for line in lines[:-1])]
    return [one.previous for one in receipts(top)] == previous


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
