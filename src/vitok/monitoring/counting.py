"""From rows of the decision log to hourly counts: one pass over each column, in compiled code."""

import json
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
    version_of = frame["model_version"]
    if frame.height and version_of.n_unique() == 1:
        # As most hours have it.
        return (_count(version_of[0], frame, profile_of(version_of[0])),)
    found = []
    for version in version_of.unique(maintain_order=True).to_list():
        found.append(_count(version, frame.filter(version_of == version), profile_of(version)))
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
    columns = [rows[name].cast(pl.Float64).to_numpy()[order] for name in (*names, PROBABILITY)]
    latency = rows["latency_us"].to_numpy()[order]
    groups = _group_counts(pl.DataFrame([pl.Series("_hour", of_row), *(rows[name] for name in _GROUPS)]))
    n_bins = profile.layout.n_bins if profile else 0
    counts = np.zeros((len(hours), n_bins), dtype=np.int64)
    joint = np.zeros((len(hours), profile.joint.n_features if profile and profile.joint else 0))
    sliced = {
        column: values for column, values in (profile.sliced if profile else {}).items() if column in rows.columns
    }
    codes = {column.name: column.to_numpy()[order] for column in rows.select(**_codes(sliced))} if sliced else {}
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
        # Rows side by side: a slice is then a stretch of them, counted in one call.
        matrix = np.column_stack(part) if codes and profile else np.zeros((0, 0))
        for column, code in codes.items():
            within = np.argsort(code[first:last], kind="stable")
            ordered = matrix[within]
            ones, begins = np.unique(code[first:last][within], return_index=True)
            for one, begin, end in zip(ones.tolist(), begins, [*begins[1:], last - first], strict=True):
                slice_at.append((at, places[column, (profile.sliced if profile else {})[column][one]]))
                slice_n.append(int(end - begin))
                if profile:
                    slice_counts.append(profile.layout.count(ordered[begin:end]))
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


def _codes(sliced: Mapping[str, tuple[str, ...]]) -> dict[str, "pl.Expr"]:
    """Returns the place of each value among those known; what is not there, null included, is the last, "other"."""
    import polars as pl

    found = {}
    for column, known in sliced.items():
        mapping = {value: at for at, value in enumerate(known) if value != OTHER}
        place = pl.col(column).cast(pl.String).replace_strict(mapping, default=len(known) - 1, return_dtype=pl.Int64)
        found[column] = place.fill_null(len(known) - 1)
    return found


def _group_counts(rows: "pl.DataFrame") -> dict[int, dict[str, dict[str, int]]]:
    found: dict[int, dict[str, dict[str, int]]] = {}
    for hour, *names, count in rows.group_by("_hour", *_GROUPS).len().rows():
        groups = found.setdefault(hour, {each: {} for each in _GROUPS})
        for group, name in zip(_GROUPS, names, strict=True):
            groups[group][name] = groups[group].get(name, 0) + count
    return {
        hour: {group: dict(sorted(counts.items())) for group, counts in groups.items()}
        for hour, groups in found.items()
    }
