"""The gate's question about skew: do the rows that a version will serve look as those that its profile was made of?

A version made elsewhere brings the profile of the table that it was tested on. Where a feature of that table was
computed in another way (a label that leaked into it, a join by today's state, another unit), the log shows it before
the version has answered anything.
"""

from pathlib import Path

from vitok import decisions
from vitok.features import FeatureSet
from vitok.monitoring import ReferenceProfile, check_quality
from vitok.monitoring.sketches import WindowCounts
from vitok.registry import Check
from vitok.stats import LatencyHistogram
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.model import LoadedModel
from vitok.systems.fraud.rehearsal import logged_values

_NAMED = 3
_MOST = 200_000


def skew_check(
    folder: Path,
    model: LoadedModel,
    profile: ReferenceProfile,
    *,
    since: int,
    until: int,
    features: FeatureSet = FEATURES,
) -> Check:
    """Looks for faults of the data between a version's profile and the features that were logged.

    Drift is no skew: what counts are the faults that `check_quality` names, such as nulls, units and failed joins.

    Args:
        folder: Folder of the decision log.
        model: The version.
        profile: Its reference profile.
        since: Beginning of the rows to look at, microseconds.
        until: Their end, not included.
        features: What the service computes.

    Returns:
        A check that passes where no fault was found; where the log has no rows of that time nothing could be found.

    Raises:
        NotFound: If there is no log.
        ServiceError: If the version cannot score the rows.
    """
    columns = ["amount", *(f"f_{name}" for name in features.names if name != "amount")]
    logged = decisions.read(folder, since=since, until=until, columns=columns).tail(_MOST)
    if logged.is_empty():
        return Check(name="skew", passed=True, value=0.0, bound=0.0, reason="nothing was logged to compare with")
    values = logged_values(logged, features)
    _, probability = model.answer(values)
    by_name = {name: values[:, place] for place, name in enumerate(features.names)}
    kept = [by_name[name] for name in profile.columns if name in by_name]
    window = WindowCounts(
        model_version=model.version,
        start=since,
        end=until,
        n=len(values),
        n_hours=1,
        digest=profile.digest,
        counts=profile.layout.count_columns([*kept, probability]),
        actions={},
        routes={},
        feature_status={},
        n_probability=len(values),
        mean_probability=float(probability.mean()),
        latency=LatencyHistogram(),
    )
    faults = check_quality(profile, window)
    reason = "; ".join(map(str, faults[:_NAMED])) or f"{len(values):,} logged rows look as those of its profile"
    if len(faults) > _NAMED:
        reason += f"; and {len(faults) - _NAMED} more"
    return Check(name="skew", passed=not faults, value=float(len(faults)), bound=0.0, reason=reason)
