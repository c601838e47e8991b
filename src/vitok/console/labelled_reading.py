"""Decisions with what is known of their outcomes, few enough that a page is quick: one request in so many."""

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitok import decisions
from vitok.clock import DAY
from vitok.console import stores
from vitok.console.newest import SAMPLED, one_in, taken_rows
from vitok.decisions.segments import segments
from vitok.monitoring import WatchRules
from vitok.systems.fraud.messages import OUTCOME_KIND

if TYPE_CHECKING:
    import polars as pl

OUTCOME_COLUMNS = ("request_id", "kind", "value", "event_time", "ingest_time", "source", "supersedes")
_DECISION = ("request_id", "event_time", "model_version", "route", "action", "amount", "probability")
_RULES = WatchRules()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """Decisions, and labels where they are known.

    Attributes:
        rows: In the order of event time: `request_id`, `event_time` in microseconds, `model_version`, `route`,
            `action`, `amount`, `probability`, `label` (null where it is not known).
        one_in: One request in so many was taken.
    """

    rows: "pl.DataFrame"
    one_in: int

    def ripe(self) -> "pl.DataFrame":
        """Returns the rows of days most of whose labels are in.

        Where frauds are known before honest payments are, a day with few labels looks worse than it was.
        """
        import polars as pl

        share = pl.col("label").is_not_null().mean().over(pl.col("event_time") // DAY)
        return self.rows.filter(share >= _RULES.min_labelled)

    def ripe_days(self) -> "pl.Series":
        """Returns those days, counted from 1970."""
        return (self.ripe()["event_time"] // DAY).unique()

    def known(self, version: str | None = None) -> "pl.DataFrame":
        """Returns the rows with a label and a probability, of days most of whose labels are in.

        Args:
            version: Only those that this version decided; None for all.
        """
        rows = self.ripe().drop_nulls(["label", "probability"])
        rows = rows.filter(rows["probability"].is_not_nan())
        return rows if version is None else rows.filter(rows["model_version"] == version)


def labelled(home: Path) -> Labelled | None:
    """Reads the newest decisions with their labels; None where nothing was decided."""
    folder = stores.logs(home)
    return None if folder is None else _labelled(folder, sizes(folder))


def sizes(folder: Path) -> tuple[tuple[str, int], ...]:
    """Returns the segments of both logs with their sizes, which stand for the contents: a log only grows.

    Args:
        folder: The folder above both logs.
    """

    def size(path: Path) -> int:
        try:
            return path.stat().st_size
        except FileNotFoundError:
            # It was sealed since the folder was listed.
            return -1

    return tuple(
        (str(segment.path), size(segment.path))
        for name in ("decisions", "outcomes")
        for segment in segments(folder / name)
    )


def label_view(outcomes: "pl.DataFrame", kind: str = OUTCOME_KIND) -> "pl.DataFrame":
    """Returns the latest label of each request among some outcomes, as `decisions.labels` does of the whole log."""
    import polars as pl

    rows = outcomes.filter(pl.col("kind") == kind)
    named = pl.col("request_id").is_duplicated() if rows.height else pl.lit(False)
    # Most requests have one outcome, and to look for its repetitions takes ten times as long as to see that.
    once, often = rows.filter(~named), rows.filter(named).sort("ingest_time", maintain_order=True)
    same = ["request_id", "value", "event_time", "source", "supersedes"]
    latest = often.unique(same, keep="first", maintain_order=True).group_by("request_id", maintain_order=True).last()
    return pl.concat([once, latest.select(once.columns)]).select(
        "request_id", label="value", label_time="event_time", label_ingest_time="ingest_time", source="source"
    )


@functools.lru_cache(maxsize=4)
def _labelled(folder: Path, read: Any) -> Labelled | None:
    import polars as pl

    del read
    taken = one_in(folder / "decisions", most=SAMPLED)
    made, _ = taken_rows(folder / "decisions", _DECISION, one_in=taken)
    if made is None:
        return None
    came = None
    if segments(folder / "outcomes"):
        came, _ = taken_rows(folder / "outcomes", OUTCOME_COLUMNS, one_in=taken)
    if came is None:
        rows = made.with_columns(label=pl.lit(None, pl.Float64))
    else:
        rows = decisions.join(made, label_view(came)).drop("label_time", "label_ingest_time")
    rows = rows.with_columns(pl.col("event_time").to_physical()).sort("event_time", maintain_order=True)
    return Labelled(rows=rows, one_in=taken)
