"""Oracles: the detections that River 0.26.1 documents; one by one against batches; test_detectors_river.py for more."""

import copy
import math
import pickle
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.stats.detectors import Detector, Verdict
from vitok.stats.detectors_adwin import ADWIN
from vitok.stats.detectors_error_rates import DDM, EDDM
from vitok.stats.detectors_hddm import HDDMA, HDDMW
from vitok.stats.detectors_kswin import KSWIN, critical_count
from vitok.stats.detectors_page_hinkley import PageHinkley

ERRORS: list[Detector] = [DDM(), EDDM(), HDDMA(two_sided=True), HDDMW(two_sided=True)]
NUMBERS: list[Detector] = [
    ADWIN(clock=1),
    ADWIN(after_change="keep", clock=3),
    KSWIN(seed=3, alpha=0.02),
    KSWIN(seed=3, after_change="keep"),
    KSWIN(window_size=700, stat_size=4, alpha=0.1),
    PageHinkley(threshold=4.0),
]
ALL = ERRORS + NUMBERS


def stream(seed: int, n: int = 3000) -> np.ndarray:
    """Error rates that rise, fall and rise again."""
    rng = np.random.default_rng(seed)
    return (rng.random(n) < np.repeat([0.1, 0.6, 0.2, 0.7, 0.05], n // 5)).astype(np.float64)


@pytest.mark.parametrize(
    ("detector", "changes"),
    [(ADWIN(), [1023]), (PageHinkley(), [1006]), (KSWIN(alpha=0.0001, seed=42), [1016])],
    ids=str,
)
def test_documented_example_of_numbers(detector: Detector, changes: list[int]) -> None:
    rng = random.Random(12345)
    found = detector.update_many(rng.choices([0, 1], k=1000) + rng.choices(range(4, 8), k=1000))
    assert list(found.changes) == changes
    assert found.directions == ("higher",)


@pytest.mark.parametrize(
    ("detector", "change", "warnings"),
    [
        (DDM(), 1334, (1084, 1492)),
        (EDDM(alpha=0.8, beta=0.75), 1278, (1059,)),
        (HDDMA(), 1206, (451,)),
        (HDDMW(), 1077, (451,)),
    ],
    ids=str,
)
def test_documented_example_of_errors(detector: Detector, change: int, warnings: tuple[int, ...]) -> None:
    rng = random.Random(42)
    values = rng.choices([0, 1], k=1000) + rng.choices([0, 1], k=1000, weights=[0.3, 0.7])
    found = detector.update_many(values)
    assert found.changes == (change,)
    # The first warning, and the first after the change: what the example prints.
    after = [at for at in found.warnings if at > change][:1] if len(warnings) > 1 else []
    assert (found.warnings[0], *after) == warnings


@pytest.mark.parametrize(
    ("detector", "changes", "warnings", "sum_of_warnings"),
    [
        (ADWIN(), [735, 1471, 2015, 2495], 0, 0),
        (ADWIN(clock=1, delta=0.1), [632, 1243, 1873, 2429], 0, 0),
        (DDM(), [39, 263, 621, 1905], 97, 113_438),
        (EDDM(), [298, 606, 2000, 2064, 2119, 2175, 2223, 2294, 2343], 470, 839_097),
        (EDDM(warm_start=5, alpha=0.9, beta=0.6), [323, 630], 949, 1_290_725),
        (HDDMA(), [610, 1845], 6, 7_307),
        (HDDMA(two_sided=True), [610, 1231, 1831, 2405], 12, 17_355),
        (HDDMW(), [619, 1827], 7, 11_532),
        (HDDMW(two_sided=True), [619, 1225, 1827, 2407], 19, 28_528),
        (KSWIN(seed=9), [196, 2261, 2437, 2976], 0, 0),
        (KSWIN(seed=9, window_size=420, stat_size=4, alpha=0.05), [446, 882, 1384, 1853, 2279, 2774], 0, 0),
        (PageHinkley(threshold=9.0), [56, 218, 268, 329, 359, 441, 471, 501, 610, 643, 741, 798, 881, 912], 0, 0),
    ],
    ids=str,
)
def test_what_river_found(detector: Detector, changes: list[int], warnings: int, sum_of_warnings: int) -> None:
    # Made once with River 0.26.1; of Page-Hinkley's 53 changes the first.
    values = stream(1)
    if detector.needs == "be a finite number":
        values = values + np.round(np.random.default_rng(2).normal(size=3000), 2)
    found = detector.update_many(values)
    assert list(found.changes[: len(changes)]) == changes
    assert len(found.changes) == len(changes) or isinstance(detector, PageHinkley)
    assert (len(found.warnings), sum(found.warnings)) == (warnings, sum_of_warnings)


@pytest.mark.parametrize("detector", ALL, ids=str)
def test_batches_are_one_by_one(detector: Detector) -> None:
    values = stream(1) + (0.0 if detector in ERRORS else 0.3 * np.random.default_rng(2).normal(size=3000).round(1))
    detector.reset()
    single = copy.deepcopy(detector)
    verdicts = [single.update(x) for x in values.tolist()]
    for cuts in ([3000], [1, 7, 1000, 1992], [0, 3000]):
        detector.reset()
        seen, at, found = [], 0, []
        for size in cuts:
            part = detector.update_many(values[at : at + size])
            assert part.n_obs == size
            seen += [at + place for place in part.changes]
            found += list(part.directions)
            at += size
        assert seen == [place for place, verdict in enumerate(verdicts) if verdict.change]
        assert found == [verdict.direction for verdict in verdicts if verdict.change]
        assert detector.to_bytes() == single.to_bytes()
    assert len(seen) >= 1
    detector.reset()


@pytest.mark.parametrize("detector", ALL, ids=str)
def test_python_finds_what_is_compiled_to_the_last_bit(detector: Detector) -> None:
    values = stream(1) + (0.0 if detector in ERRORS else 0.3 * np.random.default_rng(2).normal(size=3000).round(1))
    detector.reset()
    plain = copy.deepcopy(detector)
    for part in (values[:0], values[:1], values[1:1400], values[1400:]):
        assert plain.update_many(part, compiled=False) == detector.update_many(part)
        assert plain.to_bytes() == detector.to_bytes()
    assert (plain.codes(values.tolist(), compiled=False) == detector.codes(values)).all()
    with pytest.raises(InvalidInput, match="nan"):
        plain.update_many([0.0, math.nan], compiled=False)
    assert plain.to_bytes() == detector.to_bytes()
    detector.reset()


def test_squares_too_large_for_a_float_are_no_warning_in_python_either() -> None:
    compiled, plain = ADWIN(clock=1), ADWIN(clock=1)
    values = np.tile([1e200, -1e200], 40)
    assert plain.update_many(values, compiled=False) == compiled.update_many(values)


ONLY_LOOKED_AT = """
from vitok.stats import ADWIN, HDDMW, PageHinkley, detectors_adwin_kernels, detectors_kernels
for detector in (ADWIN(), HDDMW(), PageHinkley()):
    again = type(detector).from_bytes(detector.to_bytes())
    again.update_many([0.5, 1.0, 0.25] * 20, compiled=False)
kernels = {**vars(detectors_kernels), **vars(detectors_adwin_kernels)}
print([name for name, value in kernels.items() if getattr(value, "signatures", None)])
"""


def test_a_detector_that_is_only_looked_at_compiles_nothing() -> None:
    said = subprocess.run([sys.executable, "-c", ONLY_LOOKED_AT], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("detector", ALL, ids=str)
def test_bytes_pickle_and_copy_go_on(detector: Detector) -> None:
    values = stream(5)
    detector.reset()
    detector.update_many(values[:1300])
    others = [
        Detector.from_bytes(detector.to_bytes()),
        type(detector).from_bytes(detector.to_bytes()),
        pickle.loads(pickle.dumps(detector)),
        copy.deepcopy(detector),
    ]
    wanted = detector.update_many(values[1300:])
    for other in others:
        assert repr(other) == repr(detector)
        assert other.update_many(values[1300:]) == wanted
    detector.reset()
    fresh = type(detector)(**detector.parameters)
    assert fresh.to_bytes() == detector.to_bytes()


def test_numbers_of_numpy_as_parameters() -> None:
    odd = HDDMA(drift_confidence=np.float64(0.01), warning_confidence=np.float32(0.5), two_sided=np.bool_(True))
    whole = ADWIN(clock=np.int64(3), delta=np.float64(0.01))
    for detector in (odd, whole):
        assert repr(Detector.from_bytes(detector.to_bytes())) == repr(detector)
    assert repr(whole) == repr(ADWIN(clock=3, delta=0.01))


def test_damaged_bytes_are_refused() -> None:
    data = DDM().to_bytes()
    broken = bytearray(data)
    broken[-1] ^= 1
    for bad in (b"", data[:20], data[:-1], bytes(broken), data[:14] + b"\x09" + data[15:], b"x" + data):
        with pytest.raises(InvalidInput, match="data"):
            Detector.from_bytes(bad)
    with pytest.raises(InvalidInput, match="hold a EDDM"):
        EDDM.from_bytes(data)


@pytest.mark.parametrize("detector", ALL, ids=str)
def test_what_is_no_observation_is_refused_and_not_taken(detector: Detector) -> None:
    detector.reset()
    detector.update_many(stream(7)[:500])
    before = detector.to_bytes()
    bad: list[Any] = [float("nan"), float("inf"), -float("inf"), "x", None]
    if detector in ERRORS:
        bad += [-0.1, 1.1, 2]
    if isinstance(detector, EDDM):
        bad += [0.5]
    for value in bad:
        with pytest.raises(InvalidInput):
            detector.update(value)
        with pytest.raises(InvalidInput):
            detector.update_many([0.0, value])
    with pytest.raises(InvalidInput):
        detector.update_many(np.zeros((2, 2)))
    assert detector.to_bytes() == before
    for kind in (True, np.float32(1.0), np.bool_(False), 1):
        assert isinstance(detector.update(kind), Verdict)
    assert detector.update_many([]).n_obs == 0
    assert str(detector.update_many([0.0])) == "0 changes in 1"
    detector.reset()


def test_direction_and_what_is_worse() -> None:
    rise = np.repeat([0.0, 1.0], 300)
    for kind in (ADWIN, PageHinkley, KSWIN):
        options = {"threshold": 5.0} if kind is PageHinkley else {}
        for values, way in ((rise, "higher"), (1 - rise, "lower")):
            for worse in ("higher", "lower", None):
                found = kind(**options, worse=worse).update_many(values)
                assert found.directions[0] == way
                assert (found.changes[0] in found.alarms) == (worse in (way, None))
    for kind in (HDDMA, HDDMW):
        found = kind(two_sided=True, worse="higher").update_many(1 - rise)
        assert found.directions == ("lower",)
        assert found.alarms == ()
        assert kind(two_sided=False).update_many(1 - rise).changes == ()
        assert kind(two_sided=True, worse="higher").update_many(rise).alarms != ()


def test_a_change_without_a_direction_is_an_alarm() -> None:
    # Two gaps of the same size at the same observation are too rare to wait for one.
    for detector in (KSWIN(worse="higher"), KSWIN(worse="lower"), KSWIN()):
        assert str(detector._verdicts[1]) == "change, unclear"
        assert detector._verdicts[1].alarm


def test_verdicts_print_and_are_true_for_alarms_only() -> None:
    detector = DDM()
    seen = {str(detector.update(x)) for x in stream(3)}
    assert seen == {"no change", "warning, higher", "change, higher"}
    assert not Verdict(change=True, warning=False, alarm=False, direction="lower")
    assert Verdict(change=True, warning=False, alarm=True, direction="higher")


def test_adwin_keeps_what_is_recent() -> None:
    rise = np.repeat([0.0, 1.0], 1000)
    keep, restart = ADWIN(after_change="keep"), ADWIN()
    at = keep.update_many(rise).changes[0]
    assert restart.update_many(rise).changes[0] == at
    assert (keep.width, round(keep.mean, 3)) == (1000, 1.0)
    restart.reset()
    restart.update_many(rise[: at + 1])
    width = restart.width
    restart.update(1.0)
    assert width > 5
    assert restart.width == 1
    assert np.isnan(ADWIN().mean)


def plain_adwin(values: np.ndarray, clock: int, delta: float = 0.002) -> list[int]:
    """River's rule with every observation kept and every cut at a bucket's end, from Bifet & Gavalda 2007."""
    sizes: list[int] = []
    window: list[float] = []
    found = []
    tick = 0
    for at, x in enumerate(values):
        window.append(float(x))
        sizes.append(1)
        size = 1
        while sizes.count(size) > 5:
            first = sizes.index(size)
            sizes[first : first + 2] = [2 * size]
            size *= 2
        tick += 1
        if tick % clock or len(window) <= 10:
            continue
        changed, again = False, True
        while again:
            again, n0, width = False, 0, len(window)
            log = np.log(2 * np.log(width) / delta)
            for part in sizes[:-1]:
                n0 += part
                n1 = width - n0
                if n0 >= 5 and n1 >= 5:
                    share = 1 / (n0 - 4) + 1 / (n1 - 4)
                    bound = np.sqrt(2 * share * np.var(window) * log) + 2 / 3 * log * share
                    if abs(np.mean(window[:n0]) - np.mean(window[n0:])) > bound:
                        del window[: sizes[0]]
                        del sizes[0]
                        changed = again = True
                        break
        if changed:
            found.append(at)
            sizes, window, tick = [], [], 0
    return found


@pytest.mark.parametrize("clock", [1, 5])
def test_adwin_against_a_plain_one(clock: int) -> None:
    rng = np.random.default_rng(3)
    for scale in (1.0, 20.0):
        values = scale * rng.normal(np.repeat([0, 1, 1, -1], 150), 0.5).round(2)
        assert list(ADWIN(clock=clock).update_many(values).changes) == plain_adwin(values, clock)


def test_adwin_sieve_never_hides_a_cut() -> None:
    # Beside huge sums the sieve stands aside; the detections must be those of the same values without the offset.
    rng = np.random.default_rng(4)
    values = np.round(rng.normal(np.repeat([0, 3, 0], 600), 1) * 64) / 64
    for offset in (0.0, 2.0**12, 2.0**34):
        moved = ADWIN(clock=1).update_many(values + offset).changes
        assert len(moved) == 2, offset
    assert ADWIN(clock=1).update_many(np.full(5000, 1e300)).changes == ()
    assert ADWIN(clock=1).update_many(np.full(5000, -3.25)).changes == ()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clock": 3, "max_buckets": 3, "min_window_length": 2, "grace_period": 0, "delta": 0.05},
        {"max_buckets": 2, "min_window_length": 1, "grace_period": 0, "delta": 0.9},
        {"max_buckets": 9, "min_window_length": 40, "delta": 0.3, "after_change": "keep"},
    ],
)
def test_adwin_with_its_sieve_finds_what_every_cut_finds(options: dict[str, Any]) -> None:
    from vitok.stats.detectors_adwin_kernels import PEAK

    rng = np.random.default_rng(6)
    places = np.repeat(rng.normal(size=12), 150)
    for values in (
        rng.normal(places, 1.0),
        (rng.random(1800) < 1 / (1 + np.exp(-places))) * 1.0,
        rng.standard_t(2, 1800) * 5 + places,
        np.round(places, 1),
    ):
        found = ADWIN(**{"clock": 1, **options}).update_many(values).changes
        plain = ADWIN(**{"clock": 1, **options})
        wanted = []
        for at, x in enumerate(values.tolist()):
            # Where sums were as large as this, the sieve stands aside.
            plain._state[PEAK] = np.inf
            if plain.update(x).change:
                wanted.append(at)
        assert found == tuple(wanted)


def test_adwin_over_a_long_stream_renews_its_sums() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(size=20_000)
    values[15_000:] += 0.5
    every, seldom = ADWIN(clock=1), ADWIN(clock=1)
    assert every.update_many(values).changes == tuple(
        at for at, x in enumerate(values.tolist()) if seldom.update(x).change
    )


@pytest.mark.filterwarnings("ignore:ks_2samp")
@pytest.mark.parametrize(("size", "alpha"), [(30, 0.005), (30, 0.0001), (10, 0.02), (5, 0.0001), (400, 0.05)])
def test_critical_count_by_scipy(size: int, alpha: float) -> None:
    from scipy.stats import ks_2samp

    critical = critical_count(size, alpha)
    ranks = np.arange(size)
    for gap in range(1, size + 1):
        found = ks_2samp(ranks, ranks + gap - 0.5)
        assert (found.pvalue <= alpha and found.statistic > 0.1) == (gap >= critical)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ADWIN, {"delta": 0.0}),
        (ADWIN, {"delta": 1.0}),
        (ADWIN, {"clock": 0}),
        (ADWIN, {"max_buckets": 1}),
        (ADWIN, {"min_window_length": 0}),
        (ADWIN, {"grace_period": -1}),
        (ADWIN, {"after_change": "forget"}),
        (ADWIN, {"worse": "up"}),
        (DDM, {"warm_start": 0}),
        (DDM, {"warning_threshold": 4.0}),
        (DDM, {"drift_threshold": float("nan")}),
        (DDM, {"worse": "lower"}),
        (EDDM, {"alpha": 0.5}),
        (EDDM, {"beta": 0.0}),
        (HDDMA, {"drift_confidence": 0.1}),
        (HDDMA, {"drift_confidence": 0.0}),
        (HDDMW, {"weight": 0.0}),
        (HDDMW, {"warning_confidence": 1.0}),
        (KSWIN, {"alpha": 0.0}),
        (KSWIN, {"stat_size": 51}),
        (KSWIN, {"stat_size": 0}),
        (KSWIN, {"seed": -1}),
        (KSWIN, {"after_change": ""}),
        (PageHinkley, {"alpha": 0.0}),
        (PageHinkley, {"threshold": 0.0}),
        (PageHinkley, {"delta": -1.0}),
        (PageHinkley, {"mode": "up and down"}),
        (PageHinkley, {"min_instances": 0}),
    ],
)
def test_parameters_out_of_range(kind: type[Detector], options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(options))[:5]):
        kind(**options)


@pytest.mark.parametrize("detector", ALL, ids=str)
def test_thresholds_and_strictness(detector: Detector) -> None:
    kind = type(detector)
    assert kind.from_strictness(kind.strictness(detector.threshold)) == pytest.approx(detector.threshold)
    stricter = detector.with_threshold(kind.from_strictness(2 * kind.strictness(detector.threshold)))
    assert kind.strictness(stricter.threshold) == pytest.approx(2 * kind.strictness(detector.threshold))
    same = detector.with_threshold(detector.threshold)
    assert same.parameters == pytest.approx(dict(detector.parameters)) or same.parameters == detector.parameters


def test_bytes_that_end_too_soon_are_refused() -> None:
    whole = DDM().to_bytes()
    for end in range(len(whole)):
        with pytest.raises(InvalidInput, match="data"):
            Detector.from_bytes(whole[:end])


def test_a_threshold_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInput, match="drift_threshold"):
        DDM(warning_threshold=0.0, drift_threshold=0.0)
    assert DDM(warning_threshold=0.0).with_threshold(2.0).parameters["warning_threshold"] == 0.0
