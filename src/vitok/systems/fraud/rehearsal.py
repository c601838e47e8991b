"""What a new version would have done in the days whose labels are still to come, from the features that were logged.

A canary is judged on outcomes, and those of its own decisions come a label delay later. But its features are in the
log, and no label of the days before it began was known when it was made: scored now, these days are as new to it as
the days to come, and their labels arrive from its first day on.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitok import decisions
from vitok.clock import DAY
from vitok.errors import InvalidInput
from vitok.features import FeatureSet
from vitok.loop import LogEvidence, Look, Release
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.model import LoadedModel

if TYPE_CHECKING:
    import polars as pl

LONGEST = 28 * DAY
"""A version that was made long ago is rehearsed on so much of the log at most."""
_KEPT = ("request_id", "event_time", "amount")
_AT_ONCE = 100_000


def rehearsed(
    folder: Path,
    *,
    candidate: LoadedModel,
    incumbent: LoadedModel,
    since: int,
    until: int,
    features: FeatureSet = FEATURES,
) -> "pl.DataFrame":
    """Scores the decisions of a period with two versions, whoever answered them.

    Let the period begin no earlier than the labels that the candidate learned from end: a label delay before it was
    made. Blocks that the incumbent lets pass at random pass here as they would have.

    Args:
        folder: Folder of the decision log.
        candidate: The new version.
        incumbent: The version that it is compared with.
        since: Beginning, microseconds.
        until: End, not included.
        features: What the service computes.

    Returns:
        Rows for a `PairedJudge`, as if the incumbent had answered and the candidate had been its shadow:
        `request_id`, `event_time`, `amount`, `model_version`, `probability`, `action`, `shadow_version`,
        `shadow_probability`, `route`, `route_reason`, `policy_version`.

    Raises:
        InvalidInput: If both versions are the same.
        ServiceError: If a version cannot score the rows.
    """
    import polars as pl

    if candidate.version == incumbent.version:
        raise InvalidInput("candidate", candidate.version, "be another version than the incumbent")
    wanted = [*_KEPT, *(f"f_{name}" for name in features.names if name != "amount")]
    logged = decisions.read(folder, since=since, until=until, columns=wanted)
    parts = [_scored(part, candidate, incumbent, features) for part in logged.iter_slices(_AT_ONCE)]
    return pl.concat(parts) if parts else _scored(logged, candidate, incumbent, features)


def _scored(
    logged: "pl.DataFrame", candidate: LoadedModel, incumbent: LoadedModel, features: FeatureSet
) -> "pl.DataFrame":
    import polars as pl

    values = logged_values(logged, features)
    theirs, ours = (
        model.answer(values)[1] if len(logged) else np.empty(0, np.float64) for model in (incumbent, candidate)
    )
    tiers = incumbent.policy.decide(theirs, logged["amount"].to_numpy(), logged["request_id"].to_list())
    return logged.select(
        *_KEPT,
        model_version=pl.lit(incumbent.version),
        probability=pl.Series(theirs, dtype=pl.Float64),
        action=pl.Series(tiers.actions, dtype=pl.String),
        shadow_version=pl.lit(candidate.version),
        shadow_probability=pl.Series(ours, dtype=pl.Float64),
        route=pl.lit("champion"),
        route_reason=pl.lit("rehearsed"),
        policy_version=pl.lit(incumbent.policy_version),
    )


def logged_values(logged: "pl.DataFrame", features: FeatureSet = FEATURES) -> np.ndarray:
    """Returns the features of rows of the decision log, shape (n, features); NaN where there was none."""
    import polars as pl

    values = np.empty((len(logged), len(features.names)))
    for place, name in enumerate(features.names):
        column = logged["amount" if name == "amount" else f"f_{name}"]
        values[:, place] = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rehearsing:
    """Evidence of a release: its rehearsal first, then what is logged; the labels of both as they come.

    How far the rehearsal has come stands in the release's position, which is kept in one transaction with what its
    judges have seen: a process that dies loses none of it, and the next one counts none of it twice. A look holds a
    day of the rehearsal; its rows are scored once when the release begins, and once when their labels are known.

    Attributes:
        log: Evidence from the logs.
        since: From when on a version can be rehearsed, microseconds; None where it is not.
        score: Scores the decisions of `[since, until)` with both versions of a release, as `rehearsed`.
    """

    log: LogEvidence
    since: Callable[[Release], int | None]
    score: Callable[[Release, int, int], "pl.DataFrame"]

    def look(self, release: Release, *, now: int) -> Look:
        """Returns what came since `release.position`; asked again from there, the same and what came later.

        Raises:
            ServiceError: If a version cannot score the rows.
            StoreError: If a log cannot be read.
        """
        place = self._place(release)
        until = int(place["until"])
        matured = min(until, (now - self.log.maturity) // DAY * DAY)
        if place["seen"] < until:
            end = _next(place["seen"], until)
            rows = self.score(release, place["seen"], end)
            return Look(decisions=rows, position=place | {"seen": end}, more=True)
        if place["matured"] < matured:
            end = _next(place["matured"], matured)
            labelled = self._labelled(release, place["matured"], end, now)
            return Look(labelled=labelled, position=place | {"matured": end}, more=True)
        look = self.log.look(dataclasses.replace(release, position=place["log"]), now=now)
        return dataclasses.replace(look, position=place | {"log": look.position})

    def _place(self, release: Release) -> dict[str, Any]:
        position, until = release.position, release.begun_at
        if position is not None and "log" in position:
            return dict(position)
        # One that somebody has begun to judge on the log alone goes on so.
        since = self.since(release) if position is None else None
        since = until if since is None else max(min(since, until), until - LONGEST)
        return {"log": position, "seen": since, "matured": since, "until": until}

    def _labelled(self, release: Release, since: int, until: int, now: int) -> "pl.DataFrame | None":
        known = self.log.labels(since, now)
        if known is None:
            return None
        return decisions.join(self.score(release, since, until), known).drop_nulls("label")


def _next(moment: int, until: int) -> int:
    return min(moment // DAY * DAY + DAY, until)
