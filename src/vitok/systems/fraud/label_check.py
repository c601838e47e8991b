"""The gate's question about labels: did a version learn from some that are held, because their source went wrong?"""

from pathlib import Path

from vitok import decisions
from vitok.monitoring.label_guard import LabelGuard
from vitok.registry import Check
from vitok.systems.fraud.messages import SYSTEM

HOLDS = Path("monitoring") / "label_holds.sqlite"
"""Where a home keeps which sources of labels are not believed."""


def label_check(home: Path, *, since: int, until: int, now: int, left_out: bool) -> Check:
    """Counts the held labels among those that a version learned from.

    Args:
        home: The service's home folder.
        since: Event time of the first row that it learned from, microseconds.
        until: Event time at which its rows end.
        now: The present; what was held by now counts, also where nobody knew it when the version was made.
        left_out: Whether it was made of the labels that `LabelGuard.trusted` gives.

    Returns:
        A check that passes where there are none, or it left them out.
    """
    import polars as pl

    logs = [home / "log" / name for name in ("decisions", "outcomes")]
    if left_out or not (home / HOLDS).exists() or not all(any(log.rglob("segment-*")) for log in logs):
        why = "labels that are held were left out" if left_out else "no label is held"
        return Check(name="labels", passed=True, value=0.0, bound=0.0, reason=why)
    rows = decisions.read(logs[0], since=since, until=until, columns=["request_id"])
    view = decisions.labels(logs[1], as_of=now, kind=SYSTEM).join(rows, on="request_id", how="semi")
    guard = LabelGuard(home / HOLDS)
    held = view.join(guard.trusted(view), on="request_id", how="anti")
    guard.close()
    sources = held.group_by("source").agg(pl.len(), pl.col("label").mean()).sort("source")
    named = "; ".join(f"{n:,} of {source}, {rate:.2%} of them positive" for source, n, rate in sources.iter_rows())
    reason = f"it learned from labels that are held: {named}" if len(held) else "it learned from no label that is held"
    return Check(name="labels", passed=not len(held), value=float(len(held)), bound=0.0, reason=reason)
