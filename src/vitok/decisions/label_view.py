"""What is known of the outcomes at a time, and joined to the decisions.

Outcomes arrive late, twice, and are taken back. Each keeps two times: when it became true and when vitok learned of
it. The label view of a past time uses only what had been learned by then, so every report can be made again.
"""

import contextlib
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vitok.decisions.reading import Span, read, scan
from vitok.decisions.segments import segments
from vitok.decisions.selection import label_weights
from vitok.errors import InvalidInput

if TYPE_CHECKING:
    import polars as pl

_LAST = 2**63 - 2
_ROW = "row of the view"
LABEL_COLUMNS = ("label", "label_time", "label_ingest_time")


def labels(
    folder: str | Path, *, as_of: int, kind: str, weights: str | Path | None = None, since: int | None = None
) -> "pl.DataFrame":
    """Returns the label of each request as it was known at a time.

    An outcome that equals an earlier one in all but the time it was learned is a repeated delivery and changes
    nothing. Of the others, the one learned last counts, and among those learned at the same time the later in the
    log: a chargeback that is reversed by a later outcome is no fraud from then on.

    Args:
        folder: Folder of an outcome log.
        as_of: Only what was learned at or before this time, in microseconds, is seen.
        kind: Which outcomes, such as `"fraud"`.
        weights: Folder of the log of the decisions; adds what each label counts for in an estimate over all
            decisions, as `label_weights` says.
        since: Only labels of decisions taken from this time on, in microseconds, are wanted: outcomes learned of
            before it, and decisions taken before it, are not read. All by default.

    Returns:
        One row per request, in the order in which requests were first labelled: `request_id`, `label` (float64),
        `label_time` (when it became true), `label_ingest_time` (when vitok learned of it), `source`; with `weights`
        also `weight` (float64; null where there is no such decision).

    Raises:
        NotFound: If the folder holds no log.

    Example:
        >>> import tempfile
        >>> from vitok.decision import Outcome
        >>> from vitok.decisions.log import OutcomeLog
        >>> with tempfile.TemporaryDirectory() as folder, OutcomeLog(folder) as log:
        ...     first = Outcome(request_id="r1", kind="fraud", value=1.0, event_time=5, ingest_time=10)
        ...     _ = log.append([first, Outcome(request_id="r1", kind="fraud", value=0.0, event_time=8, ingest_time=20)])
        ...     [labels(folder, as_of=time, kind="fraud")["label"].to_list() for time in (9, 10, 20)]
        [[], [1.0], [0.0]]
    """
    import polars as pl

    view = _view(Path(folder), as_of, kind, since)
    if weights is None:
        return view
    taken = read(weights, since=since, columns=["request_id", "action", "propensity"])
    taken = taken.unique("request_id", keep="first", maintain_order=True)
    taken = taken.select("request_id", weight=pl.Series(label_weights(taken).weight))
    return view.join(taken, on="request_id", how="left", maintain_order="left")


class _Kept(NamedTuple):
    # A view, what it was asked for by, and the files that it was read from.
    asked: tuple[Path, int, str, int | None]
    files: tuple[tuple[str, int, int, int], ...]
    view: "pl.DataFrame"


_kept: deque[_Kept] = deque(maxlen=2)


def _view(folder: Path, as_of: int, kind: str, since: int | None) -> "pl.DataFrame":
    # Whoever looks at a time often asks several times: the guard of labels, the watch, a challenger.
    asked, files = (folder, as_of, kind, since), _files(folder)
    for kept in tuple(_kept):
        if kept.asked == asked and kept.files == files:
            return kept.view.clone()
    view = _latest(scan(folder, Span(ingest=(since, min(as_of, _LAST) + 1)), kind=kind))
    if _files(folder) == files:
        _kept.append(_Kept(asked, files, view))
    return view.clone()


def _files(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    # A segment only grows, or another file takes its place.
    found = []
    for segment in segments(folder):
        with contextlib.suppress(FileNotFoundError):
            stat = segment.path.stat()
            found.append((str(segment.path), stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def _latest(rows: "pl.DataFrame") -> "pl.DataFrame":
    import polars as pl

    # A stable sort keeps the order of the log among outcomes that were learned at the same time.
    rows = rows.sort("ingest_time", maintain_order=True).with_row_index(_ROW)
    more = rows["request_id"].is_duplicated()
    if more.any():
        # Most requests have one outcome, of which nothing has to be asked.
        same = ["request_id", "value", "event_time", "source", "supersedes"]
        some = rows.filter(more).unique(same, keep="first", maintain_order=True)
        some = some.group_by("request_id").agg(pl.col(_ROW).first(), pl.exclude("request_id", _ROW).last())
        rows = pl.concat([rows.filter(~more), some.select(rows.columns)]).sort(_ROW)
    return rows.select(
        "request_id",
        pl.col("value").alias("label"),
        pl.col("event_time").alias("label_time"),
        pl.col("ingest_time").alias("label_ingest_time"),
        "source",
    )


def join(decisions: "pl.DataFrame", labels: "pl.DataFrame") -> "pl.DataFrame":
    """Puts labels beside decisions; every decision stays, in its place, whether labelled or not.

    Args:
        decisions: Any frame with `request_id`, such as `read` gives.
        labels: What `labels` gave.

    Returns:
        The decisions with `label`, `label_time` and `label_ingest_time`, null where there is no label yet.

    Raises:
        InvalidInput: If a request has two labels, or the decisions have such columns already.
    """
    taken = [name for name in LABEL_COLUMNS if name in decisions.columns]
    if taken:
        raise InvalidInput("decisions", taken, "not have label columns yet", "Drop them, or join once")
    twice = labels["request_id"].is_duplicated()
    if twice.any():
        name = labels["request_id"].filter(twice)[0]
        raise InvalidInput("labels", name, "have one row per request", "Make them with decisions.labels")
    return decisions.join(
        labels.select("request_id", *LABEL_COLUMNS), on="request_id", how="left", maintain_order="left"
    )
