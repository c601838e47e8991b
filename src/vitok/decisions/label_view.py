"""What is known of the outcomes at a time, joined to the decisions, and how fast it becomes known.

Outcomes arrive late, twice, and are taken back. Each keeps two times: when it became true and when vitok learned of
it. The label view of a past time uses only what had been learned by then, so every report can be made again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vitok.clock import duration
from vitok.decisions.reading import read
from vitok.errors import InvalidInput

if TYPE_CHECKING:
    import polars as pl

LABEL_COLUMNS = ("label", "label_time", "label_ingest_time")


def labels(folder: str | Path, *, as_of: int, kind: str) -> "pl.DataFrame":
    """Returns the label of each request as it was known at a time.

    An outcome that equals an earlier one in all but the time it was learned is a repeated delivery and changes
    nothing. Of the others, the one learned last counts, and among those learned at the same time the later in the
    log: a chargeback that is reversed by a later outcome is no fraud from then on.

    Args:
        folder: Folder of an outcome log.
        as_of: Only what was learned at or before this time, in microseconds, is seen.
        kind: Which outcomes, such as `"fraud"`.

    Returns:
        One row per request, in the order in which requests were first labelled: `request_id`, `label` (float64),
        `label_time` (when it became true), `label_ingest_time` (when vitok learned of it), `source`.

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

    moment = pl.lit(as_of).cast(pl.Datetime("us", "UTC"))
    rows = read(folder).filter((pl.col("kind") == kind) & (pl.col("ingest_time") <= moment))
    # A stable sort keeps the order of the log among outcomes that were learned at the same time.
    rows = rows.sort("ingest_time", maintain_order=True)
    same = ["request_id", "value", "event_time", "source", "supersedes"]
    rows = rows.unique(same, keep="first", maintain_order=True)
    latest = rows.group_by("request_id", maintain_order=True).last()
    return latest.select(
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


def maturity(
    decisions: "pl.DataFrame",
    outcomes: "pl.DataFrame",
    ages: Sequence[int | str],
    *,
    as_of: int | None = None,
    confidence_level: float = 0.95,
) -> "pl.DataFrame":
    """Tells how many decisions have a label by which age.

    Age is counted from the decision's event time to the ingest time of its first outcome. Only decisions that had
    reached the age by `as_of` are counted for it: younger ones could not have shown a label of that age yet.

    Args:
        decisions: Frame with `request_id` and `event_time`; the first row of a request counts.
        outcomes: Frame with `request_id` and `ingest_time` (what `read` gives) or `label_ingest_time` (what
            `labels` gives), of one kind.
        ages: Ages in microseconds, or as `"7d"`.
        as_of: Until when the world was watched, in microseconds; by default the latest time in either frame.
        confidence_level: Level of the interval, in (0, 1).

    Returns:
        One row per age: `age` (microseconds), `n_obs` (decisions old enough), `labelled`, `share`, and the Wilson
        interval of the share (`lower`, `upper`); share is NaN where no decision is old enough.

    Example:
        >>> import polars as pl
        >>> times = pl.Series([0, 0, 0, 50]).cast(pl.Datetime("us", "UTC"))
        >>> made = pl.DataFrame({"request_id": ["a", "b", "c", "d"], "event_time": times})
        >>> came = pl.DataFrame({"request_id": ["a", "b"], "ingest_time": [10, 40]})
        >>> came = came.with_columns(pl.col("ingest_time").cast(pl.Datetime("us", "UTC")))
        >>> maturity(made, came, [10, 40, 90], as_of=60).select("age", "n_obs", "labelled").rows()
        [(10, 4, 1), (40, 3, 2), (90, 0, 0)]
    """
    import polars as pl

    from vitok.stats.intervals import wilson

    learned = "ingest_time" if "ingest_time" in outcomes.columns else "label_ingest_time"
    first = outcomes.group_by("request_id").agg(pl.col(learned).cast(pl.Int64).min().alias("learned"))
    made = decisions.unique("request_id", keep="first").select("request_id", pl.col("event_time").cast(pl.Int64))
    joined = made.join(first, on="request_id", how="left")
    latest = cast("int | None", pl.concat([joined["event_time"], first["learned"]]).max())
    end = as_of if as_of is not None else latest or 0
    rows = []
    for text in ages:
        age = duration(text)
        old = joined.filter(pl.col("event_time") + age <= end)
        labelled = old.filter((pl.col("learned") - pl.col("event_time") <= age) & (pl.col("learned") <= end)).height
        share = wilson(labelled, old.height, confidence_level=confidence_level)
        rows.append((age, old.height, labelled, share.value, share.lower, share.upper))
    schema: dict[str, Any] = {"age": pl.Int64, "n_obs": pl.Int64, "labelled": pl.Int64}
    schema |= dict.fromkeys(("share", "lower", "upper"), pl.Float64)
    return pl.DataFrame(rows, schema=schema, orient="row")
