"""What the log is counted by: the slices of a decision, the profile of a version, and the counts at the seal."""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitok import monitoring
from vitok.decisions import OnSeal
from vitok.errors import VitokError
from vitok.registry import Registry
from vitok.stats import ConformalSets
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.messages import SYSTEM

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

# Half decades fit any currency, and a version that is made anew keeps them.
_AMOUNTS = (3, 10, 30, 100, 300, 1_000, 3_000, 10_000)
_VISITS = (1, 10, 50)
SLICES = ("amount_band", "time_of_day", "customer_in_30d", "terminal_labels")
"""Slice columns. The day of the week is none: each window of a day has one only, so it would explain every drift."""
SLICED = ("amount", "is_night", "customer_count_30d", "terminal_labels_risk_30d")
"""Features that slices are made of."""
VIEWS: Mapping[str, tuple[str, ...]] = {view.name: view.feature_names for view in FEATURES.windowed}
"""Which features come from which view: they fail together where their join fails."""
_LOG = logging.getLogger("vitok.fraud")


def with_slices(frame: "pl.DataFrame", *, prefix: str = "f_") -> "pl.DataFrame":
    """Adds the slice columns to rows that have the features they are made of; others get what can be made.

    Args:
        frame: Rows of the decision log, or any with the features.
        prefix: What stands before the names of features.

    Example:
        >>> import polars as pl
        >>> rows = pl.DataFrame({"f_amount": [2.0, 42.0, None], "f_is_night": [0.0, 1.0, 1.0],
        ...     "f_customer_count_30d": [0.0, 12.0, None], "f_terminal_labels_risk_30d": [None, 0.0, 0.1]})
        >>> with_slices(rows).select(SLICES).rows()[:2]
        [('under 3', 'day', 'none', 'none known'), ('30 to 100', 'night', '10 to 50', 'no fraud')]
    """
    import polars as pl

    made = []
    for feature, name, labels, code in _SLICERS:
        if prefix + feature in frame.columns:
            # Null and NaN are one: no value.
            values = frame[prefix + feature].cast(pl.Float64).to_numpy()
            # The label behind the last is none.
            made.append(pl.Series(name, [*labels, None], pl.String)[code(values)].alias(name))
    return frame.with_columns(made) if any(one.name in frame.columns for one in made) else frame.hstack(made)


def _bands(*cuts: int) -> tuple[str, ...]:
    between = (f"{low:,} to {high:,}" for low, high in itertools.pairwise(cuts))
    return (f"under {cuts[0]:,}", *between, f"{cuts[-1]:,} and more")


def _band(values: NDArray[np.float64], cuts: tuple[int, ...]) -> NDArray[np.intp]:
    return np.where(np.isnan(values), len(cuts) + 1, np.searchsorted(cuts, values, side="right"))


_Slicer = Callable[[NDArray[np.float64]], NDArray[np.intp]]
_SLICERS: tuple[tuple[str, str, tuple[str, ...], _Slicer], ...] = (
    ("amount", "amount_band", _bands(*_AMOUNTS), lambda values: _band(values, _AMOUNTS)),
    ("is_night", "time_of_day", ("day", "night"), lambda values: (values > 0).astype(np.intp)),
    (
        "customer_count_30d",
        "customer_in_30d",
        ("none", *_bands(*_VISITS)[1:]),
        lambda values: _band(np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf), _VISITS),
    ),
    (
        "terminal_labels_risk_30d",
        "terminal_labels",
        ("no fraud", "fraud", "none known"),
        lambda values: np.where(np.isnan(values), 2, values > 0),
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchedVersion:
    """What watching a version needs of its package; None where an older package has it not.

    Attributes:
        profile: Its reference profile.
        weights: Each feature's share of the gain of its trees.
        estimator: What its probabilities meant on rows that nothing was fitted on.
        sets: Conformal sets from such rows.
    """

    profile: monitoring.ReferenceProfile | None = None
    weights: Mapping[str, float] | None = None
    estimator: monitoring.PerformanceEstimator | None = None
    sets: ConformalSets | None = None


class Profiles:
    """What watching versions needs of their packages, each read once; any thread may ask.

    Args:
        registry: Where versions, with their reference profiles, are kept.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._found: dict[str, WatchedVersion] = {}

    def of(self, version: str) -> WatchedVersion:
        """Returns what there is of a version such as `"fraud/2"`; nothing of the rules.

        Raises:
            NotFound: If the registry has no such version.
        """
        if version not in self._found:
            self._found[version] = self._read(version)
        return self._found[version]

    def profile(self, version: str) -> monitoring.ReferenceProfile | None:
        """Returns its reference profile."""
        return self.of(version).profile

    def weights(self, version: str) -> Mapping[str, float] | None:
        """Returns each feature's share of the gain of its trees."""
        return self.of(version).weights

    def estimator(self, version: str) -> monitoring.PerformanceEstimator | None:
        """Returns what estimates its performance without labels."""
        return self.of(version).estimator

    def sets(self, version: str) -> ConformalSets | None:
        """Returns its conformal sets."""
        return self.of(version).sets

    def _read(self, version: str) -> WatchedVersion:
        if "/" not in version:
            return WatchedVersion()
        package = self._registry.load(SYSTEM, int(version.partition("/")[2]))

        def part(name: str) -> Any:
            return package.json(name) if name in package else None

        profile, estimator, sets = part("profile.json"), part("estimator.json"), part("conformal.json")
        return WatchedVersion(
            profile=None if profile is None else monitoring.ReferenceProfile.from_dict(profile),
            weights=part("importance.json"),
            estimator=None if estimator is None else monitoring.PerformanceEstimator.from_dict(estimator),
            sets=None if sets is None else ConformalSets.from_dict(sets),
        )


def hour_sealer(registry: Registry) -> OnSeal:
    """Makes what counts the rows of a segment at its sealing, by hour, version and slice.

    What cannot be counted then is left to who reads the rows: sealing goes on.
    """
    counted = monitoring.HourSealer(Profiles(registry).profile)

    def seal(table: "pa.Table", name: str, /) -> Mapping[str, bytes]:
        import polars as pl

        try:
            frame = pl.from_arrow(table)
            return counted(with_slices(frame).to_arrow(), name) if isinstance(frame, pl.DataFrame) else {}
        except VitokError:
            _LOG.exception("%s was not counted at its sealing", name)
            return {}

    return seal
