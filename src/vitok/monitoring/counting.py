"""From rows of the decision log to hourly counts: one pass over each column, in compiled code."""

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitok.clock import HOUR
from vitok.errors import InvalidInput
from vitok.monitoring.hours import HourlyCounts, encode
from vitok.monitoring.profile import OTHER, PROBABILITY, ReferenceProfile
from vitok.stats import LatencyHistogram

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

KIND = "hours"
_GROUPS = ("action", "route", "feature_status")
_COLUMNS = ("model_version", "event_time", PROBABILITY, "latency_us", *_GROUPS)


def count_hours(
    frame: "pl.DataFrame", profile_of: Callable[[str], ReferenceProfile | None]
) -> tuple[HourlyCounts, ...]:
    """Counts rows of the decision log by version, hour and slice.

    Args:
        frame: Rows as `Tail.read` gives them, of any versions and hours.
        profile_of: Gives the reference profile of a version, or None where it has none.

    Returns:
        One item a version; for one without a profile, numbers without bins.

    Raises:
        InvalidInput: If a column is missing or a time is null.
    """
    missing = [name for name in _COLUMNS if name not in frame.columns]
    if missing:
        raise InvalidInput(
            "frame: columns", missing, "be there", "Pass rows of a decision log, as Tail.read gives them"
        )
    for name in ("model_version", "event_time", "latency_us", *_GROUPS):
        if frame[name].null_count():
            raise InvalidInput(f"frame: {name}", None, "have a value in every row")
    found = []
    for version in frame["model_version"].unique(maintain_order=True).to_list():
        rows = frame.filter(frame["model_version"] == version)
        found.append(_count(version, rows, profile_of(version)))
    return tuple(found)


class HourSealer:
    """Counts the rows of a segment when it is sealed: give it to a decision log as `on_seal`.

    The file beside the segment is of the kind `"hours"`; `Sketches.absorb` takes it up without reading a row.

    Args:
        profile_of: Gives the reference profile of a version, or None where it has none.

    Example:
        >>> import polars as pl
        >>> rows = pl.DataFrame({"event_time": [5], "model_version": ["rules"], "probability": [0.1],
        ...     "latency_us": [900], "action": ["allow"], "route": ["champion"], "feature_status": ["fresh"]})
        >>> from vitok.monitoring.hours import decode
        >>> made = HourSealer(lambda version: None)(rows.to_arrow(), "segment-00000001")
        >>> decode(made["hours"])[0].n_total
        1
    """

    def __init__(self, profile_of: Callable[[str], ReferenceProfile | None]) -> None:
        self._profile_of = profile_of

    def __call__(self, table: "pa.Table", name: str, /) -> Mapping[str, bytes]:
        """Returns the bytes of the kind `"hours"`; see `vitok.decisions.OnSeal`."""
        del name
        import polars as pl

        frame = pl.from_arrow(table)
        if not isinstance(frame, pl.DataFrame) or not frame.height:
            return {}
        return {KIND: encode(count_hours(frame, self._profile_of))}


def _count(version: str, rows: "pl.DataFrame", profile: ReferenceProfile | None) -> HourlyCounts:
    import polars as pl

    of_row = rows["event_time"].to_physical().cast(pl.Int64).to_numpy() // HOUR
    order = np.argsort(of_row, kind="stable")
    hours, starts = np.unique(of_row[order], return_index=True)
    bounds = [*starts.tolist(), len(order)]
    names = ["f_" + name for name in profile.names] if profile else []
    missing = [name for name in names if name not in rows.columns]
    if missing:
        raise InvalidInput("frame: columns", missing, "be there", "Its features are not those of the version's profile")
    # Rows of an hour lie together, so that each count reads one stretch of memory.
    columns = [rows[name].cast(pl.Float64).fill_null(math.nan).to_numpy()[order] for name in (*names, PROBABILITY)]
    latency = rows["latency_us"].to_numpy()[order]
    groups = _group_counts(rows.with_columns(pl.Series("_hour", of_row)))
    n_bins = profile.layout.n_bins if profile else 0
    counts = np.zeros((len(hours), n_bins), dtype=np.int64)
    joint = np.zeros((len(hours), profile.joint.n_features if profile and profile.joint else 0))
    codes = {
        column: _codes(rows[column], values)[order]
        for column, values in (profile.sliced if profile else {}).items()
        if column in rows.columns
    }
    slices = [(column, value) for column in codes for value in (profile.sliced if profile else {})[column]]
    places = {each: at for at, each in enumerate(slices)}
    slice_at: list[tuple[int, int]] = []
    slice_n: list[int] = []
    slice_counts: list[NDArray[np.int64]] = []
    numbers = []
    for at, hour in enumerate(hours.tolist()):
        first, last = bounds[at], bounds[at + 1]
        part = [column[first:last] for column in columns]
        if profile:
            counts[at] = profile.layout.count_columns(part)
            if profile.joint:
                joint[at] = profile.joint.sums(profile.edges[:-1], profile.counts[:-1], np.column_stack(part[:-1]))
        for column, code in codes.items():
            for one in np.unique(code[first:last]).tolist():
                chosen = code[first:last] == one
                slice_at.append((at, places[column, (profile.sliced if profile else {})[column][one]]))
                slice_n.append(int(chosen.sum()))
                if profile:
                    slice_counts.append(profile.layout.count_columns([values[chosen] for values in part]))
        answered = part[-1][np.isfinite(part[-1])]
        latencies = LatencyHistogram()
        latencies.record_many(latency[first:last])
        numbers.append(
            json.dumps(
                {
                    "groups": groups[hour],
                    "n_probability": len(answered),
                    "probability": float(answered.sum()),
                    "latency": latencies.to_dict(),
                },
                separators=(",", ":"),
            )
        )
    return HourlyCounts(
        version=version,
        digest=profile.digest if profile else "",
        hours=hours.astype(np.int64),
        n=np.diff(bounds).astype(np.int64),
        counts=counts,
        numbers=tuple(numbers),
        slices=tuple(slices),
        slice_at=np.array(slice_at, dtype=np.int64).reshape(-1, 2),
        slice_n=np.array(slice_n, dtype=np.int64),
        slice_counts=np.array(slice_counts, dtype=np.int64).reshape(len(slice_n), n_bins),
        joint=joint,
    )


def _codes(values: "pl.Series", known: tuple[str, ...]) -> NDArray[np.int64]:
    """Returns the place of each value in `known`; what is not there, null included, is the last, which is "other"."""
    import polars as pl

    mapping = {value: at for at, value in enumerate(known) if value != OTHER}
    found = values.cast(pl.String).replace_strict(mapping, default=len(known) - 1, return_dtype=pl.Int64)
    return found.fill_null(len(known) - 1).to_numpy()


def _group_counts(rows: "pl.DataFrame") -> dict[int, dict[str, dict[str, int]]]:
    found: dict[int, dict[str, dict[str, int]]] = {}
    for group in _GROUPS:
        for hour, name, count in rows.group_by("_hour", group).len().sort("_hour", group).iter_rows():
            found.setdefault(hour, {each: {} for each in _GROUPS})[group][name] = count
    return found
