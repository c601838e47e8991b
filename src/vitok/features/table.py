"""Point-in-time tables: what each feature was worth at each past moment, computed in one sweep a view."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from vitok.errors import InvalidInput
from vitok.features import windows
from vitok.features.definitions import FeatureSet, View

if TYPE_CHECKING:
    import polars as pl

RELATIVE_TOLERANCE = 1e-9


def table(spine: "pl.DataFrame", features: FeatureSet, sources: Mapping[str, "pl.DataFrame"]) -> "pl.DataFrame":
    """Adds the value of each feature as of each row's `event_time`.

    A row at time t sees events with `event_time < t` only. Rows in are rows out, in the same order.

    Args:
        spine: Rows to compute features for: `event_time` (Datetime us UTC), the entities' key columns and the request
            columns of the feature set.
        features: The definitions.
        sources: Source name to its events: event id, event time, entity keys and the aggregated columns.

    Returns:
        The spine's columns and a float64 column for each feature that is not already a column of the spine.

    Raises:
        InvalidInput: If a column is missing, or a key, time or aggregated value is null or not finite.

    Example:
        >>> import polars as pl
        >>> from vitok.features import Count, Entity, FeatureSet, Source, View
        >>> events = pl.DataFrame({"id": ["a", "b"], "customer_id": ["1", "1"], "event_time": [0, 60_000_000]})
        >>> events = events.with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
        >>> customer = Entity("customer", "customer_id")
        >>> view = View(name="customer", entity=customer, source=Source("events", "id"), aggregations=(Count(("1h",)),))
        >>> table(events, FeatureSet(views=(view,)), {"events": events})["customer_count_1h"].to_list()
        [0.0, 1.0]
    """
    import polars as pl

    time = _times(spine, "event_time", "spine")
    names = features.names
    values = np.full((len(spine), len(names)), np.nan)
    at = 0
    for name in features.request:
        values[:, at] = _floats(spine, name, "spine", allow_null=True)
        at += 1
    for view in features.views:
        if view.source.name not in sources:
            raise InvalidInput("sources", sorted(sources), f"hold {view.source.name!r}, which view {view.name!r} reads")
        width = len(view.feature_names)
        values[:, at : at + width] = _view_values(spine, time, view, sources[view.source.name])
        at += width
    features.add_on_demand(values, time)
    fresh = [name for name in names if name not in spine.columns]
    return spine.with_columns(pl.Series(name, np.ascontiguousarray(values[:, names.index(name)])) for name in fresh)


def ordered_events(
    view: View, events: "pl.DataFrame"
) -> tuple["pl.DataFrame", "pl.Series", np.ndarray, np.ndarray, np.ndarray]:
    """Orders a source's events for one view: by key, then time, then arrival; a repeated event id counts once.

    Returns:
        The ordered events; the different keys (sorted); where each key's events start, shape (keys + 1,); times in
        microseconds, shape (events,); values, shape (columns, events).
    """
    import polars as pl

    where = f"source {view.source.name!r}"
    needed = [view.source.event_id, view.source.event_time, view.entity.key]
    needed += [*view.value_columns, *view.distinct_columns]
    missing = [name for name in dict.fromkeys(needed) if name not in events.columns]
    if missing:
        raise InvalidInput(f"{where}: columns", events.columns, f"hold {', '.join(missing)}")
    frame = events.select(list(dict.fromkeys(needed)))
    for name in dict.fromkeys(needed):
        if frame[name].null_count():
            raise InvalidInput(f"{where}: {name}", None, "not be null", "Let the contract keep such rows out.")
    if frame[view.source.event_id].n_unique() < len(frame):
        frame = frame.unique(view.source.event_id, keep="first", maintain_order=True)
    frame = frame.sort(view.entity.key, view.source.event_time, maintain_order=True)
    time = _times(frame, view.source.event_time, where)
    runs = frame[view.entity.key].rle().struct.unnest()
    start = np.concatenate([[0], np.cumsum(runs["len"].to_numpy().astype(np.int64))])
    values = np.empty((len(view.value_columns), len(frame)))
    for column, name in enumerate(view.value_columns):
        values[column] = _floats(frame, name, where)
    keys = runs["value"] if len(frame) else pl.Series("value", [], frame.schema[view.entity.key])
    return frame, keys, start, time, values


def _view_values(spine: "pl.DataFrame", time: np.ndarray, view: View, events: "pl.DataFrame") -> np.ndarray:
    import polars as pl

    if view.entity.key not in spine.columns:
        raise InvalidInput("spine: columns", spine.columns, f"hold {view.entity.key}, the key of view {view.name!r}")
    frame, keys, start, event_time, values = ordered_events(view, events)
    codes = np.zeros((len(view.distinct_columns), len(frame)), np.int64)
    key_of_event = np.repeat(np.arange(len(keys)), np.diff(start))
    for row, name in enumerate(view.distinct_columns):
        codes[row] = _dense_within(key_of_event, frame[name].rank("dense").to_numpy().astype(np.int64))
    known = pl.DataFrame({view.entity.key: keys, "_code": np.arange(len(keys))})
    code = spine.select(view.entity.key).join(known, on=view.entity.key, how="left", maintain_order="left")["_code"]
    query = code.fill_null(-1).to_numpy().astype(np.int64)
    order = np.lexsort((time, query))
    out = np.empty((len(spine), len(view.feature_names)))
    windows.sweep(
        start,
        event_time,
        values,
        codes,
        int(codes.max(initial=-1)) + 1,
        query[order],
        time[order],
        view.bounds(),
        view.plan(),
        out,
    )
    result = np.empty_like(out)
    result[order] = out
    if view.include_current:
        _include_current(result, spine, view)
    return result


def _include_current(result: np.ndarray, spine: "pl.DataFrame", view: View) -> None:
    # The asking event is added to its own windows by value, so that other events of the same instant stay outside.
    if view.distinct_columns:
        raise InvalidInput(f"view {view.name!r}: include_current", True, "be off where distinct values are counted")
    plan = view.plan()
    counts = {int(window): result[:, i].copy() for i, (kind, window, _) in enumerate(plan) if kind == windows.COUNT}
    for i, (kind, window, column) in enumerate(plan):
        if kind == windows.COUNT:
            result[:, i] += 1
            continue
        own = _floats(spine, view.value_columns[column], "spine")
        if kind == windows.SUM:
            result[:, i] += own
        else:
            if int(window) not in counts:
                raise InvalidInput(
                    f"view {view.name!r}: include_current", True, "come with a Count over the same windows as each Mean"
                )
            n = counts[int(window)]
            result[:, i] = (np.where(n > 0, result[:, i], 0.0) * n + own) / (n + 1)


def _dense_within(group: np.ndarray, value: np.ndarray) -> np.ndarray:
    # Numbers the different values of each group 0, 1, 2, ...
    if not len(group):
        return np.zeros(0, np.int64)
    order = np.lexsort((value, group))
    g, v = group[order], value[order]
    new_group = np.concatenate([[True], g[1:] != g[:-1]])
    new_value = new_group | np.concatenate([[True], v[1:] != v[:-1]])
    running = np.cumsum(new_value) - 1
    first = np.maximum.accumulate(np.where(new_group, running, 0))
    out = np.empty(len(group), np.int64)
    out[order] = running - first
    return out


def _times(frame: "pl.DataFrame", name: str, where: str) -> np.ndarray:
    import polars as pl

    if name not in frame.columns:
        raise InvalidInput(f"{where}: columns", frame.columns, f"hold {name}")
    kind = frame.schema[name]
    if not isinstance(kind, pl.Datetime):
        raise InvalidInput(f"{where}: {name}", str(kind), "be a Datetime in UTC")
    if frame[name].null_count():
        raise InvalidInput(f"{where}: {name}", None, "not be null", "Let the contract keep such rows out.")
    return frame[name].cast(pl.Datetime("us", "UTC")).to_physical().to_numpy().astype(np.int64)


def _floats(frame: "pl.DataFrame", name: str, where: str, *, allow_null: bool = False) -> np.ndarray:
    import polars as pl

    if name not in frame.columns:
        raise InvalidInput(f"{where}: columns", frame.columns, f"hold {name}")
    values = frame[name].cast(pl.Float64).to_numpy().astype(np.float64)
    if not allow_null and not np.isfinite(values).all():
        bad = values[~np.isfinite(values)][0]
        raise InvalidInput(f"{where}: {name}", float(bad), "be finite", "Let the contract keep such rows out.")
    return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Whether two computations of the same features agree.

    Attributes:
        n_rows: Rows compared.
        n_values: Values compared.
        n_differing_rows: Rows with at least one value that differs.
        worst: Largest relative difference among the features that are sums or means.
        by_feature: Differing values by feature, only those with any.
        example: The first difference, in words; empty where there is none.
    """

    n_rows: int
    n_values: int
    n_differing_rows: int
    worst: float
    by_feature: Mapping[str, int]
    example: str = ""

    def __str__(self) -> str:
        """Says it in one line."""
        head = f"{self.n_differing_rows} of {self.n_rows} rows differ ({self.n_values} values, worst {self.worst:.1e})"
        return head + (f"; first: {self.example}" if self.example else "")


def compare(features: FeatureSet, seen: np.ndarray, expected: np.ndarray) -> Comparison:
    """Compares values that decisions saw with what the table says.

    Counts and distinct counts must be equal; sums and means may differ by 1e-9 relative (of the value, or of one
    where it is smaller); NaN equals NaN.

    Args:
        features: The definitions; they give the order of the columns.
        seen: Shape (n, features).
        expected: Shape (n, features).

    Example:
        >>> import numpy as np
        >>> from vitok.features import FeatureSet
        >>> print(compare(FeatureSet(request=("amount",)), np.array([[1.0]]), np.array([[2.0]])))
        1 of 1 rows differ (1 values, worst 5.0e-01); first: row 0, amount: saw 1.0, the table says 2.0
    """
    if seen.shape != expected.shape:
        raise InvalidInput("seen", seen.shape, f"have the shape of expected, {expected.shape}")
    names = features.names
    exact = {
        name
        for view in features.views
        for name, (kind, _, _) in zip(view.feature_names, view.plan(), strict=True)
        if kind in {windows.COUNT, windows.DISTINCT}
    }
    both_nan = np.isnan(seen) & np.isnan(expected)
    scale = np.maximum(np.maximum(np.abs(seen), np.abs(expected)), 1.0)
    with np.errstate(invalid="ignore"):
        relative = np.where(both_nan | (seen == expected), 0.0, np.abs(seen - expected) / scale)
    relative[np.isnan(relative)] = np.inf
    bound = np.array([0.0 if name in exact else RELATIVE_TOLERANCE for name in names])
    wrong = relative > bound
    example = ""
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        example = f"row {row}, {names[column]}: saw {seen[row, column]}, the table says {expected[row, column]}"
    sums = wrong.sum(axis=0)
    return Comparison(
        n_rows=len(seen),
        n_values=seen.size,
        n_differing_rows=int(wrong.any(axis=1).sum()),
        worst=float(relative.max(initial=0.0)),
        by_feature={name: int(count) for name, count in zip(names, sums, strict=True) if count},
        example=example,
    )
