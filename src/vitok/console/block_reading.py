"""What the blocks that were let pass at random show of the precision of all blocks of a version."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING

from vitok.clock import DAY
from vitok.console import stores
from vitok.console.labelled_reading import OUTCOME_COLUMNS, label_view, labelled, sizes
from vitok.console.newest import taken_rows
from vitok.console.wording import count, plural, share
from vitok.decisions import join
from vitok.decisions.segments import segments
from vitok.decisions.selection import HIDING
from vitok.policies.tier_evidence import BlockEvidence, block_evidence

if TYPE_CHECKING:
    import polars as pl


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlocksSeen:
    """What is known of the precision of a version's blocks.

    Attributes:
        n_passed: Decisions that would have been a block and passed at random, among the newest two million of the log.
        n_fraud: Frauds among those of them whose outcome is known, on days most of whose labels are in.
        evidence: What these show.
    """

    n_passed: int
    n_fraud: int
    evidence: BlockEvidence

    @property
    def n_known(self) -> int:
        """Those whose outcome is known, on days most of whose labels are in."""
        return self.evidence.precision.n_obs

    def __str__(self) -> str:
        if not self.n_passed:
            return "no block has passed at random, so nothing is known of their precision"
        target, needed = share(self.evidence.target), self.evidence.more_needed
        waiting = self.n_passed - self.n_known
        if not self.n_known:
            passed = f"{count(waiting)} that passed at random"
            return f"not enough is known yet of the {passed}; {plural(needed, 'clean one')} would show {target}"
        found = self.evidence.precision
        # Rounded up, a bound would promise what is not shown.
        least = f"{math.floor(1e4 * found.lower) / 100:g} %"
        more = f"{count(needed)} more {'clean one is' if needed == 1 else 'clean ones are'} needed for {target}"
        later = f"; of {count(waiting)} more that passed not enough is known yet" if waiting else ""
        return (
            f"precision at least {least} with {share(found.confidence_level)} confidence, from "
            f"{plural(self.n_fraud, 'fraud')} of {count(self.n_known)} that passed at random; "
            f"{f'{target} is shown' if self.evidence.shown else more}{later}"
        )


def blocks(home: Path, version: str) -> BlocksSeen | None:
    """Counts what the blocks of a version that passed at random turned out to be.

    Args:
        home: Folder of everything vitok writes.
        version: Such as `"fraud/2"`. One policy belongs to it, so that each of its blocks had the same chance to pass.

    Returns:
        None where nothing was ever decided.
    """
    folder = stores.logs(home)
    return None if folder is None else _blocks(home, folder, sizes(folder), version)


@functools.lru_cache(maxsize=8)
def _blocks(home: Path, folder: Path, read: object, version: str) -> BlocksSeen:
    del read
    passed = _passed(folder, version)
    if passed is None:
        return BlocksSeen(n_passed=0, n_fraud=0, evidence=block_evidence(0, 0))
    every = labelled(home)
    known = passed.drop_nulls("label")
    if every is not None:
        known = known.filter((known["event_time"].to_physical() // DAY).is_in(every.ripe_days().implode()))
    n_fraud = int((known["label"] == 1.0).sum())
    return BlocksSeen(n_passed=passed.height, n_fraud=n_fraud, evidence=block_evidence(n_fraud, known.height))


def _passed(folder: Path, version: str) -> "pl.DataFrame | None":
    import polars as pl

    # What shows its outcome was chosen by lot only where it stands for what does not.
    by_lot = ~pl.col("action").is_in(HIDING) & (pl.col("propensity") < 1) & (pl.col("model_version") == version)
    rows, _ = taken_rows(folder / "decisions", ("request_id", "event_time"), one_in=1, condition=by_lot)
    if rows is None:
        return None
    came = None
    if segments(folder / "outcomes"):
        theirs = pl.col("request_id").is_in(rows["request_id"].implode())
        came, _ = taken_rows(folder / "outcomes", OUTCOME_COLUMNS, one_in=1, condition=theirs)
    return rows.with_columns(label=pl.lit(None, pl.Float64)) if came is None else join(rows, label_view(came))
