"""What detectors of change say of the log: error and prediction hour by hour, with direction and expected run length.

No detector acts from here, and none keeps a state of its own: each page runs them over the log again. An hour is told
to them by its place among the hours that they learnt from, so that one threshold holds for every quantity.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from vitok.clock import DAY, HOUR
from vitok.console import curves, stores
from vitok.console.geometry import Chart, Mark
from vitok.console.labelled_reading import labelled, sizes
from vitok.console.wording import figure, length, time
from vitok.errors import NotFound
from vitok.stats import ADWIN, HDDMW, Detector, PageHinkley
from vitok.systems.fraud.messages import SYSTEM

if TYPE_CHECKING:
    import polars as pl

WISHED = 720
_LENGTHS = (HOUR, 6 * HOUR, DAY)
_A_WINDOW = 10
_LEARNT = 1 / 3
_FEWEST = 40
_MOST_WINDOWS = 1_500

Worse = Literal["higher"] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """A change that a detector saw.

    Attributes:
        time: End of the window in which it saw it, in microseconds.
        direction: `"higher"`, `"lower"` or `"unclear"`.
        alarm: Whether it is not for the better.
    """

    time: int
    direction: str
    alarm: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorSeen:
    """One detector over one stream.

    Attributes:
        name: Which detector.
        parameter: Name of its threshold.
        threshold: Its value.
        arl0: Expected run to a false alarm, in windows, with its 95 % interval.
        changes: The changes that it saw, oldest first.
    """

    name: str
    parameter: str
    threshold: float
    arl0: tuple[float, float, float]
    changes: tuple[Change, ...]

    @property
    def alarms(self) -> int:
        """Changes that are not for the better."""
        return sum(change.alarm for change in self.changes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamSeen:
    """One quantity over time, with what detectors say of it.

    Attributes:
        name: What it is, in words.
        worse: Which way is worse, in words.
        length: Length of a window, in microseconds.
        starts: Beginnings of the windows that hold decisions, oldest first.
        values: The quantity in each.
        learnt: How many of the windows the detectors learnt from; they watch the others.
        detectors: The detectors; empty where there are too few windows.
    """

    name: str
    worse: str
    length: int
    starts: tuple[int, ...]
    values: tuple[float, ...]
    learnt: int
    detectors: tuple[DetectorSeen, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorsSeen:
    """What detectors say of a version.

    Attributes:
        version: Which version, or None where nothing was decided.
        versions: Versions to choose from.
        streams: The quantities that are watched.
        one_in: One request in so many was read.
    """

    version: str | None
    versions: tuple[str, ...]
    streams: tuple[StreamSeen, ...]
    one_in: int

    def __str__(self) -> str:
        told = [
            f"{stream.name}: " + ", ".join(f"{one.name} {one.alarms} alarms" for one in stream.detectors)
            for stream in self.streams
        ]
        return "\n".join([f"{self.version or 'nothing'} watched by detectors", *told])


def detectors(home: Path, version: str | None = None) -> DetectorsSeen:
    """Runs detectors of change over what a version said and over its errors, as far as labels are in.

    Args:
        home: Folder of everything vitok writes.
        version: Which version; by default the one that serves, else the one that decided most.

    Raises:
        NotFound: If that version has decided nothing.
    """
    folder = stores.logs(home)
    if folder is None:
        return DetectorsSeen(version=None, versions=(), streams=(), one_in=1)
    return _detectors(home, sizes(folder), f"{SYSTEM}/{stores.state(home).production}", version)


@functools.lru_cache(maxsize=8)
def _detectors(home: Path, read: object, serving: str, version: str | None) -> DetectorsSeen:
    del read
    found = labelled(home)
    if found is None:
        return DetectorsSeen(version=None, versions=(), streams=(), one_in=1)
    counted = found.rows["model_version"].value_counts(sort=True)["model_version"].to_list()
    names = tuple(str(name) for name in counted)
    if version is not None and version not in names:
        raise NotFound("decisions of version", version, names)
    chosen = version or (serving if serving in names else names[0])
    own = found.rows.filter(found.rows["model_version"] == chosen)
    own = own.drop_nulls("probability").filter(own.drop_nulls("probability")["probability"].is_not_nan())
    known = found.known(chosen)
    error = (known["probability"] - known["label"]) ** 2
    return DetectorsSeen(
        version=chosen,
        versions=names,
        streams=(
            _stream("Squared error", "higher", known, error),
            _stream("Probability of fraud", None, own, own["probability"]),
        ),
        one_in=found.one_in,
    )


def _stream(name: str, worse: Worse, rows: "pl.DataFrame", values: "pl.Series") -> StreamSeen:
    told = "higher is worse" if worse else "every change counts"
    if not rows.height:
        return StreamSeen(name=name, worse=told, length=HOUR, starts=(), values=(), learnt=0, detectors=())
    moments = rows["event_time"].to_numpy()
    span = int(moments[-1] - moments[0]) + 1
    wide = next((one for one in _LENGTHS if rows.height * one >= _A_WINDOW * span and span / one <= _MOST_WINDOWS), DAY)
    places, first, n = np.unique(moments // wide, return_index=True, return_counts=True)
    means = np.add.reduceat(values.to_numpy().astype(np.float64), first) / n
    learnt = int(len(means) * _LEARNT)
    seen: tuple[DetectorSeen, ...] = ()
    if len(means) >= _FEWEST:
        ranks = placed(means, means[:learnt])
        ends = (places + 1) * wide
        seen = tuple(_seen(kind, ranks[learnt:], ends[learnt:]) for kind in kinds(worse))
    return StreamSeen(
        name=name,
        worse=told,
        length=wide,
        starts=tuple((places * wide).tolist()),
        values=tuple(means.tolist()),
        learnt=learnt,
        detectors=seen,
    )


def placed(values: NDArray[np.float64], learnt: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the place of each value among those that were learnt, in (0, 1): even where nothing has changed.

    Example:
        >>> placed(np.array([0.0, 2.5, 9.0]), np.array([1.0, 2.0, 3.0])).tolist()
        [0.125, 0.625, 0.875]
    """
    ordered = np.sort(learnt)
    below, upto = np.searchsorted(ordered, values, side="left"), np.searchsorted(ordered, values, side="right")
    return np.asarray(((below + upto) / 2 + 0.5) / (len(ordered) + 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A detector at a threshold, with the run length that goes with it.

    Attributes:
        name: Name of the detector.
        detector: The detector.
        arl0: Expected run to a false alarm, in windows, with its 95 % interval; from `run_length` with 10,000 runs
            (600 of ADWIN, which no threshold makes as lax as is wished) over even numbers in (0, 1), which is what
            places among learnt windows are, whatever the quantity.
    """

    name: str
    detector: Detector
    arl0: tuple[float, float, float]


@functools.cache
def kinds(worse: Worse) -> tuple[Kind, ...]:
    """Returns the detectors, calibrated by `calibrate` for a run length of `WISHED` windows.

    Args:
        worse: `"higher"` where only that is an alarm, None where every change is.
    """
    rises = worse == "higher"
    page_hinkley = PageHinkley(delta=0.02, threshold=4.457 if rises else 5.627, alpha=1.0, worse=worse)
    hddm = HDDMW(drift_confidence=0.1869 if rises else 0.1165, warning_confidence=0.3, two_sided=True, worse=worse)
    adwin = ADWIN(delta=0.3, clock=4, worse=worse)
    return (
        Kind(name="Page-Hinkley", detector=page_hinkley, arl0=(701, 688, 713) if rises else (720, 708, 732)),
        Kind(name="HDDM-W", detector=hddm, arl0=(709, 697, 721) if rises else (724, 714, 735)),
        Kind(name="ADWIN", detector=adwin, arl0=(34_700, 31_900, 37_800) if rises else (16_700, 15_400, 18_200)),
    )


def _seen(kind: Kind, ranks: NDArray[np.float64], ends: NDArray[np.int64]) -> DetectorSeen:
    # A detector has a state; that of `kinds` is never used.
    detector = kind.detector.with_threshold(kind.detector.threshold)
    # Compiling takes seconds where no earlier process has, and these are `_MOST_WINDOWS` at most.
    found = detector.update_many(ranks, compiled=False)
    alarms = set(found.alarms)
    return DetectorSeen(
        name=kind.name,
        parameter=detector.threshold_name,
        threshold=detector.threshold,
        arl0=kind.arl0,
        changes=tuple(
            Change(time=int(ends[where]), direction=direction, alarm=where in alarms)
            for where, direction in zip(found.changes, found.directions, strict=True)
        ),
    )


def stream_drawn(stream: StreamSeen) -> Chart:
    """Draws a quantity over time, the time that was learnt from as an area, and alarms as points."""
    axis = curves.Axis.around(stream.values, zero=True)
    middles = [start + stream.length // 2 for start in stream.starts]
    over = curves.times(middles)
    kept = _thinned(stream.values)
    heights = dict(zip(middles, stream.values, strict=True))

    def height(moment: int) -> float:
        return heights[moment - stream.length // 2]

    learnt = over.along(middles[stream.learnt]) if stream.detectors else 0.0
    return Chart(
        title=f"{stream.name} by windows of {length(stream.length)}, with the changes that detectors saw",
        marks=(Mark(x=0.0, y=0.0, width=learnt, height=100.0, tone="track", title="learnt from this time"),)
        if learnt
        else (),
        lines=(curves.line(((over.along(middles[at]), axis.up(stream.values[at])) for at in kept), "thin"),),
        dots=curves.dots(
            (
                over.along(change.time - stream.length // 2),
                axis.up(height(change.time)),
                "outside" if change.alarm else "inside",
                f"{one.name}, {time(change.time)}: {change.direction}, {figure(height(change.time))}",
            )
            for one in stream.detectors
            for change in one.changes
        ),
        y_labels=axis.labels(),
        x_labels=curves.time_labels(stream.starts[0], stream.starts[-1] + stream.length) if stream.starts else (),
    )


def _thinned(values: Sequence[float]) -> list[int]:
    """Returns the places of the least and the largest of each stretch, where there are more than can be seen."""
    if len(values) <= 400:
        return list(range(len(values)))
    array = np.asarray(values)
    parts = np.array_split(np.arange(len(array)), 200)
    return sorted({int(part[pick(array[part])]) for part in parts for pick in (np.argmin, np.argmax)})
