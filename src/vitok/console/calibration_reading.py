"""Whether probabilities mean what they say: the reliability diagram, its scores and tests, by version and over time."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitok.clock import DAY
from vitok.console import curves, stores
from vitok.console.geometry import Chart
from vitok.console.labelled_reading import labelled, sizes
from vitok.console.wording import count, day, figure, interval, share, three
from vitok.errors import NotFound
from vitok.monitoring import watch_calibration
from vitok.monitoring.calibration_watch import CalibrationWatch, CalibrationWindow
from vitok.stats import (
    CalibrationError,
    Estimate,
    NullTest,
    ReliabilityDiagram,
    calibration_error,
    calibration_null_test,
    reliability_diagram,
    roc_auc,
)
from vitok.systems.fraud.messages import SYSTEM

if TYPE_CHECKING:
    import polars as pl

_DRAWS = 199
# The draws and the bets are most of the work of this page.
_MOST_TESTED = 30_000
_MOST_VERSIONS = 8
_MOST_WINDOWS = 24
_REMEMBERED = 1
_GROUPS = 1_000
_FEWEST = 50
_FALSE_ALARM = 0.01
_ALARM = -math.log(_FALSE_ALARM)
# Below so many frauds a window tells nothing of how well a version ranks.
_POSITIVES = 8
# Where most probabilities are small, an axis of equal steps would squeeze them into a corner.
_SMALL = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class VersionCalibration:
    """Calibration of one version, with discrimination beside it.

    Attributes:
        version: Such as `"fraud/2"`.
        start: Event time of its earliest row, in microseconds.
        end: Event time of its latest row.
        error: Debiased calibration error.
        test: Whether it is more than noise, by labels drawn from the probabilities.
        discrimination: Area under the ROC curve.
        n_positive: Rows whose label is 1.
        mean_probability: What the model expects.
    """

    version: str
    start: int
    end: int
    error: CalibrationError
    test: NullTest
    discrimination: Estimate
    n_positive: int
    mean_probability: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationSeen:
    """The calibration of a version, beside that of the others and over time.

    Attributes:
        versions: One line for each version with enough labels, newest first.
        chosen: The version that is shown; None where no labels are in.
        diagram: Its reliability diagram, over probabilities in groups of alike ones; None as above.
        watch: Its calibration over time; None as above.
        window: Length of a window of `watch`, in microseconds.
        one_in: One request in so many was read.
        reason: Why there is nothing to show, in words; empty where there is.
    """

    versions: tuple[VersionCalibration, ...]
    chosen: VersionCalibration | None
    diagram: ReliabilityDiagram | None
    watch: CalibrationWatch | None
    window: int
    one_in: int
    reason: str

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        return "\n".join([*(f"{one.version}: {one.error}; {one.test}" for one in self.versions), str(self.diagram)])


def calibration(home: Path, version: str | None = None) -> CalibrationSeen:
    """Reads how well probabilities are calibrated, from decisions whose labels are in.

    Args:
        home: Folder of everything vitok writes.
        version: Which version; by default the one that serves, else the one with most labels.

    Raises:
        NotFound: If no labelled decision is that version's.
    """
    folder = stores.logs(home)
    state = stores.state(home)
    if folder is None:
        return _nothing("Nothing was decided yet.")
    return _calibration(home, sizes(folder), f"{SYSTEM}/{state.production}", version)


@functools.lru_cache(maxsize=8)
def _calibration(home: Path, read: object, serving: str, version: str | None) -> CalibrationSeen:
    del read
    found = labelled(home)
    rows = None if found is None else found.known()
    if found is None or rows is None or not rows.height:
        return _nothing("No day has most of its labels yet, so nothing can be said of what probabilities meant.")
    parts = {str(name): part for (name,), part in rows.group_by("model_version", maintain_order=True)}
    enough = {name: part for name, part in parts.items() if part.height >= _FEWEST}
    if version is not None and version not in enough:
        raise NotFound("labelled decisions of version", version, enough)
    if not enough:
        return _nothing(f"No version has {_FEWEST} decisions with labels yet.")
    newest = sorted(enough, key=lambda name: -int(enough[name]["event_time"][-1]))[:_MOST_VERSIONS]
    chosen = version or (serving if serving in newest else max(newest, key=lambda name: enough[name].height))
    if chosen not in newest:
        newest = [*newest[:-1], chosen]
    lines = tuple(_line(name, enough[name]) for name in newest)
    y, p, event_time = _arrays(enough[chosen])
    window, watched = _watched(event_time, p, y)
    return CalibrationSeen(
        versions=lines,
        chosen=next(line for line in lines if line.version == chosen),
        diagram=reliability_diagram(y, grouped(p), n_draws=100, n_points=60),
        watch=watched,
        window=window,
        one_in=found.one_in,
        reason="",
    )


def _nothing(reason: str) -> CalibrationSeen:
    return CalibrationSeen(versions=(), chosen=None, diagram=None, watch=None, window=DAY, one_in=1, reason=reason)


def _arrays(part: "pl.DataFrame") -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    p = np.clip(part["probability"].to_numpy(), 0.0, 1.0)
    return part["label"].to_numpy() == 1.0, p, part["event_time"].to_numpy()


def _line(version: str, part: "pl.DataFrame") -> VersionCalibration:
    y, p, event_time = _arrays(part)
    return VersionCalibration(
        version=version,
        start=int(event_time[0]),
        end=int(event_time[-1]),
        error=calibration_error(y, p),
        test=calibration_null_test(y[:: _step(y)], p[:: _step(y)], n_draws=_DRAWS),
        discrimination=roc_auc(y, p),
        n_positive=int(y.sum()),
        mean_probability=float(p.mean()),
    )


def grouped(probability: NDArray[np.float64], groups: int = _GROUPS) -> NDArray[np.float64]:
    """Returns the mean of the group of alike probabilities that each belongs to, so that a diagram is quickly drawn.

    Args:
        probability: Shape (n,).
        groups: Groups of about equal size; where there are fewer distinct values, nothing changes.

    Example:
        >>> grouped(np.array([0.1, 0.2, 0.3, 0.5]), 2).round(2).tolist()
        [0.15, 0.15, 0.4, 0.4]
    """
    distinct, place = np.unique(probability, return_inverse=True)
    if len(distinct) <= groups:
        return probability
    weight = np.bincount(place)
    group = (np.cumsum(weight) - weight) * groups // len(probability)
    mean = np.bincount(group, weights=weight * distinct) / np.maximum(np.bincount(group, weights=weight), 1)
    return np.clip(mean[group][place], 0.0, 1.0)


def _step(y: NDArray[np.bool_]) -> int:
    return max(1, -(-len(y) // _MOST_TESTED))


def _watched(
    event_time: NDArray[np.int64], p: NDArray[np.float64], y: NDArray[np.bool_]
) -> tuple[int, CalibrationWatch]:
    taken = slice(None, None, _step(y))
    days = int(event_time[-1] // DAY - event_time[0] // DAY) + 1
    windows = min(max(int(y[taken].sum()) // _POSITIVES, 1), _MOST_WINDOWS)
    window = max(1, -(-days // windows)) * DAY
    return window, watch_calibration(
        event_time[taken], p[taken], y[taken], window=window, remembered=_REMEMBERED, false_alarm=_FALSE_ALARM
    )


def reliability_drawn(diagram: ReliabilityDiagram) -> Chart:
    """Draws what probabilities turned out to mean, with the band of pure chance, up to where the model goes."""
    points = list(zip(diagram.probability, diagram.recalibrated, diagram.lower, diagram.upper, strict=True))
    small = bool(points) and float(np.median(diagram.probability)) < _SMALL
    axis: curves.Axis = curves.LogAxis(low=1e-4, high=1.0) if small else curves.Axis(low=0.0, high=1.0)
    return Chart(
        title="What happened at each probability, with the band in which a calibrated model would stay",
        bands=curves.bands(((axis.along(p), axis.up(high), axis.up(low)) for p, _, low, high in points), "chance"),
        lines=(
            curves.line(((0.0, 100.0), (100.0, 0.0)), "bound"),
            curves.line(((axis.along(p), axis.up(value)) for p, value, _, _ in points), "actual"),
        ),
        dots=curves.dots(
            (
                axis.along(p),
                axis.up(value),
                "inside" if low - 1e-12 <= value <= high + 1e-12 else "outside",
                f"said {share(p)}, happened {share(value)}; chance alone gives {share(low)} to {share(high)}",
            )
            for p, value, low, high in points
        ),
        y_labels=tuple(share(value) for value in (axis.high, axis.middle, axis.low)),
        x_labels=tuple(share(value) for value in (axis.low, axis.middle, axis.high)),
    )


def course_drawn(windows: tuple[CalibrationWindow, ...], measure: str) -> Chart:
    """Draws a measure of calibration over time.

    Args:
        windows: The windows, oldest first.
        measure: `"gap"`, `"discrimination"` or `"evidence"`.
    """
    estimates = {
        "gap": [one.gap for one in windows],
        "discrimination": [one.discrimination for one in windows],
        "evidence": [],
    }[measure]
    over = curves.times([(one.start + one.end) // 2 for one in windows])
    xs = [over.along((one.start + one.end) / 2) for one in windows]
    labels = curves.time_labels(windows[0].start, windows[-1].end) if windows else ()
    if measure == "evidence":
        axis = curves.Axis.around([*(max(0.0, one.log_evidence) for one in windows), _ALARM], zero=True)
        return Chart(
            title="Evidence against calibration, as a logarithm, with the alarm",
            lines=(
                curves.line(((0.0, axis.up(_ALARM)), (100.0, axis.up(_ALARM))), "bound"),
                curves.line(zip(xs, [axis.up(one.log_evidence) for one in windows], strict=True), "actual"),
            ),
            dots=curves.dots(
                (x, axis.up(one.log_evidence), "inside", f"{day(one.start)}: {three(one.log_evidence)}")
                for x, one in zip(xs, windows, strict=True)
            ),
            y_labels=axis.labels(),
            x_labels=labels,
        )
    axis = curves.Axis.around(
        [end for one in estimates for end in (one.lower, one.value, one.upper) if math.isfinite(one.value)],
        zero=measure == "gap",
    )
    points = list(zip(xs, estimates, windows, strict=True))
    level = ((0.0, axis.up(0.0)), (100.0, axis.up(0.0))) if measure == "gap" else ()
    return Chart(
        title={"gap": "Frequency less probability", "discrimination": "Area under the ROC curve"}[measure]
        + " by window, with intervals",
        lines=(
            curves.line(level, "bound"),
            curves.whiskers(
                ((x, axis.up(one.upper), axis.up(one.lower)) for x, one, _ in points if math.isfinite(one.value)),
                "whisker",
            ),
            curves.line(((x, axis.up(one.value)) for x, one, _ in points), "actual"),
        ),
        dots=curves.dots(
            (
                x,
                axis.up(one.value),
                "inside",
                f"{day(window.start)}: {figure(one.value)} ({interval(one.lower, one.upper)}), "
                f"{count(one.n_obs)} decisions",
            )
            for x, one, window in points
        ),
        y_labels=axis.labels(),
        x_labels=labels,
    )
