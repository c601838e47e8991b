"""How a judge takes a look in: what it cannot read is put aside, and the rest of the look counts.

One row that no judge can read (an amount that is no number, a label that is neither 0 nor 1) would else stop the
release for good: the place in the log moves on with the judge, so the same row would come at each tick.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from vitok.errors import InvalidInput
from vitok.loop.release_evidence import Look
from vitok.loop.releases import Judged

if TYPE_CHECKING:
    import polars as pl

_MOST = 1_000


class Takes(Protocol):
    """A judge; one that raises has taken in nothing of the look."""

    def take(self, look: Look, *, now: int) -> Judged:
        """Takes in what came since the look before, and says what it makes of everything so far."""
        ...


def taken(judge: Takes, look: Look, *, now: int) -> tuple[Judged, tuple[str, ...]]:
    """Lets a judge take in a look, without the rows that it refuses.

    Args:
        judge: The judge.
        look: The look.
        now: The present, in microseconds.

    Returns:
        What the judge makes of everything, and why it refused each row that was put aside.

    Raises:
        InvalidInput: If it refuses a look without rows too, or more than 1,000 rows: then the rows are not at fault.
    """
    aside: list[str] = []
    said: Judged | None = None
    for part in _parts(look):
        said = _take(judge, part, now, aside) or said
    return said or judge.take(Look(), now=now), tuple(aside)


def scored_by(look: Look, version: str) -> int:
    """Counts the new decisions of a look that a version acted on or was scored beside.

    Example:
        >>> scored_by(Look(), "fraud/2")
        0
    """
    import polars as pl

    count = 0
    if look.decisions is not None:
        for name in ("model_version", "shadow_version"):
            if name in look.decisions.columns:
                count += int(look.decisions.select((pl.col(name) == version).sum()).item())
        return count
    return sum(int((part.requests["version"] == version).sum()) for part in look.splits)


def _parts(look: Look) -> Iterator[Look]:
    # A request counts once among pairs, so that they may be given again; split traffic may not.
    if look.decisions is not None or look.labelled is not None:
        yield Look(decisions=look.decisions, labelled=look.labelled)
    for split in look.splits:
        yield Look(splits=(split,))


def _take(judge: Takes, part: Look, now: int, aside: list[str]) -> Judged | None:
    try:
        return judge.take(part, now=now)
    except InvalidInput as error:
        if part.decisions is not None and part.labelled is not None:
            halves = [Look(decisions=part.decisions), Look(labelled=part.labelled)]
        else:
            n = len(_rows(part))
            # Where no row at all is refused too, the rows are not at fault.
            judge.take(_cut(part, 0, 0), now=now)
            if n < 2:
                if len(aside) >= _MOST:
                    raise
                aside.append(str(error))
                return None
            halves = [_cut(part, 0, n // 2), _cut(part, n // 2, n - n // 2)]
    said = [_take(judge, half, now, aside) for half in halves]
    return said[1] or said[0]


def _rows(part: Look) -> "pl.DataFrame":
    if part.splits:
        return part.splits[0].requests
    rows = part.decisions if part.decisions is not None else part.labelled
    assert rows is not None  # noqa: S101
    return rows


def _cut(part: Look, offset: int, length: int) -> Look:
    rows = _rows(part).slice(offset, length)
    if part.splits:
        return Look(splits=(replace(part.splits[0], requests=rows),))
    return Look(decisions=rows) if part.decisions is not None else Look(labelled=rows)
