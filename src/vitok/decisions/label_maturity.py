"""How late labels are: by kind and slice, with what has not had the time to arrive taken into account."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from vitok.clock import duration
from vitok.errors import InvalidInput

if TYPE_CHECKING:
    import polars as pl

_CURVE = ("share", "lower", "upper", "arrived", "arrived_lower", "arrived_upper")


def maturity(
    decisions: "pl.DataFrame",
    outcomes: "pl.DataFrame",
    ages: Sequence[int | str],
    *,
    by: Sequence[str] = (),
    as_of: int | None = None,
    confidence_level: float = 0.95,
) -> "pl.DataFrame":
    """Tells how many decisions have a label by which age, and which share of the labels has arrived by it.

    Age is counted from the decision's event time to the ingest time of its first outcome of a kind. Two curves are
    given, because two questions are asked. `share` is that of the decisions: the plain estimator among those that
    had reached the age by `as_of`, since younger ones could not have shown a label of that age yet; with its Wilson
    interval. `arrived` is that of the labels, of those that ever come within the longest time watched: the
    product-limit estimator in reversed time (Lagakos, Barraj & De Gruttola, Biometrika 1988), since late labels of
    young decisions cannot have been seen; with Greenwood's interval of its logarithm.

    Args:
        decisions: Frame with `request_id` and `event_time`; the first row of a request counts.
        outcomes: Frame with `request_id` and `ingest_time` (what `read` gives) or `label_ingest_time` (what
            `labels` gives). Where it has a `kind`, each kind has curves of its own.
        ages: Ages in microseconds, or as `"7d"`.
        by: Columns of the decisions; each slice has curves of its own.
        as_of: Until when the world was watched, in microseconds; by default the latest time in either frame.
        confidence_level: Level of the intervals, in (0, 1).

    Returns:
        One row per kind, slice and age: `kind` where the outcomes have it, the columns of `by`, `age`
        (microseconds), `n_obs` (decisions old enough), `labelled`, `share`, `lower`, `upper`, `arrived`,
        `arrived_lower`, `arrived_upper`; a share is NaN where nothing can be said.

    Raises:
        InvalidInput: If a slice is no column of the decisions.

    Example:
        >>> import polars as pl
        >>> times = pl.Series([0, 0, 0, 50]).cast(pl.Datetime("us", "UTC"))
        >>> made = pl.DataFrame({"request_id": ["a", "b", "c", "d"], "event_time": times})
        >>> came = pl.DataFrame({"request_id": ["a", "b"], "ingest_time": [10, 40]})
        >>> came = came.with_columns(pl.col("ingest_time").cast(pl.Datetime("us", "UTC")))
        >>> maturity(made, came, [10, 40, 90], as_of=60).select("age", "n_obs", "labelled", "arrived").rows()
        [(10, 4, 1, 0.5), (40, 3, 2, 1.0), (90, 0, 0, 1.0)]
    """
    import polars as pl

    for name in by:
        if name not in decisions.columns or name in ("request_id", "event_time"):
            raise InvalidInput("by", name, "be a column of the decisions to slice them by")
    learned = "ingest_time" if "ingest_time" in outcomes.columns else "label_ingest_time"
    own = ["kind"] if "kind" in outcomes.columns else []
    first = outcomes.group_by("request_id", *own).agg(pl.col(learned).cast(pl.Int64).min().alias("learned"))
    made = decisions.unique("request_id", keep="first", maintain_order=True).select(
        "request_id", pl.col("event_time").cast(pl.Int64), *by
    )
    latest = cast("int | None", pl.concat([made["event_time"], first["learned"]]).max())
    end = as_of if as_of is not None else latest or 0
    lengths = [duration(age) for age in ages]
    rows: list[tuple[Any, ...]] = []
    kinds = (sorted(first["kind"].unique()) if own else []) or [None]
    for kind in kinds:
        mine = first if kind is None else first.filter(pl.col("kind") == kind)
        joined = made.join(mine.select("request_id", "learned"), on="request_id", how="left", maintain_order="left")
        named = (kind,) if own else ()
        parts = joined.group_by(*by, maintain_order=True) if by else [((), joined)]
        for slice_, part in parts:
            event = part["event_time"].to_numpy()
            came = part["learned"].fill_null(2**62).to_numpy()
            rows += [(*named, *slice_, *row) for row in _curves(event, came, lengths, end, confidence_level)]
    schema: dict[str, Any] = dict.fromkeys(own, pl.String) | {name: made.schema[name] for name in by}
    schema |= dict.fromkeys(("age", "n_obs", "labelled"), pl.Int64) | dict.fromkeys(_CURVE, pl.Float64)
    return pl.DataFrame(rows, schema=schema, orient="row")


def arrived_by(
    delay: npt.NDArray[np.int64], limit: npt.NDArray[np.int64], ages: Sequence[int], *, confidence_level: float = 0.95
) -> list[tuple[float, float, float]]:
    """Estimates the law of delays of which only those up to a limit of their own could be seen.

    In reversed time such delays are left-truncated, and the product-limit estimator holds: the share up to age a is
    the product over the later delays d of 1 - n(d) / R(d), where R(d) counts delays up to d whose limit is at least
    d. It is the share among labels that come within the largest limit; of later ones nothing can be known.

    Args:
        delay: Shape (n,), each at most its limit.
        limit: Shape (n,): how long each was watched.
        ages: Where the share is wanted.
        confidence_level: Level of the interval, in (0, 1).

    Returns:
        Share, lower and upper end for each age; NaN, 0 and 1 without delays.

    Example:
        >>> import numpy as np
        >>> [found[0] for found in arrived_by(np.array([1, 1, 3]), np.array([5, 2, 5]), [0, 1, 3])]
        [0.0, 0.5, 1.0]
    """
    from vitok.stats.intervals import normal_quantile

    if not len(delay):
        return [(math.nan, 0.0, 1.0)] * len(ages)
    z = normal_quantile(confidence_level)
    times, counts = np.unique(delay, return_counts=True)
    # At risk at d: begun by d (delay at most d) and watched as long as d.
    at_risk = np.searchsorted(np.sort(delay), times, side="right") - np.searchsorted(np.sort(limit), times, side="left")
    left = at_risk - counts
    with np.errstate(divide="ignore"):
        log_step = np.log(np.maximum(left, 0) / at_risk)
        spread = np.where(left > 0, counts / (at_risk * np.maximum(left, 1)), math.inf)
    found = []
    for age in ages:
        later = times > age
        log_share = float(log_step[later].sum())
        share = math.exp(log_share)
        half = z * math.sqrt(float(spread[later].sum())) if share > 0 else math.inf
        lower = share * math.exp(-half) if share > 0 else 0.0
        found.append((share, lower, min(1.0, share * math.exp(half)) if share > 0 else math.nan))
    # Where nothing was seen up to an age, the rule of three bounds the share.
    bound = 1 - (1 - confidence_level) ** (1 / len(delay))
    return [(share, lower, bound if math.isnan(upper) else upper) for share, lower, upper in found]


def _curves(
    event: npt.NDArray[np.int64], came: npt.NDArray[np.int64], ages: list[int], end: int, confidence_level: float
) -> list[tuple[Any, ...]]:
    from vitok.stats.intervals import wilson

    seen = came <= end
    # A clock that stepped back can make a label older than its decision: it came at once.
    delay = np.maximum(came - event, 0)
    delays, limits = delay[seen], np.maximum(end - event[seen], delay[seen])
    arrived = arrived_by(delays, limits, ages, confidence_level=confidence_level)
    rows = []
    for age, law in zip(ages, arrived, strict=True):
        old = event + age <= end
        n_old, labelled = int(old.sum()), int((old & seen & (delay <= age)).sum())
        share = wilson(labelled, n_old, confidence_level=confidence_level)
        rows.append((age, n_old, labelled, share.value, share.lower, share.upper, *law))
    return rows
