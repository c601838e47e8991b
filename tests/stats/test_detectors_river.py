"""Oracle: River 0.26.1, observation by observation, on 200 streams of ten kinds."""

from typing import Any

import numpy as np
import pytest

from vitok.stats.detectors import Detector
from vitok.stats.detectors_adwin import ADWIN
from vitok.stats.detectors_error_rates import DDM, EDDM
from vitok.stats.detectors_hddm import HDDMA, HDDMW
from vitok.stats.detectors_kswin import KSWIN
from vitok.stats.detectors_page_hinkley import PageHinkley

drift = pytest.importorskip("river.drift", reason="river is not there; make test-libraries has it")

N_STREAMS = 200
TWO_SIDED = {"two_sided_test": True}


def streams(domain: str) -> list[np.ndarray]:
    """Returns the streams that hold errors, or shares in [0, 1], or any numbers."""
    rng = np.random.default_rng(11)
    made = []
    for i in range(N_STREAMS):
        n = int(rng.integers(300, 1_500))
        late = np.arange(n) >= n // 2
        low, high = rng.uniform(0.02, 0.3), rng.uniform(0.4, 0.9)
        ramp = np.clip(np.arange(n) / n * 3 - 1, 0, 1)
        kinds = [
            rng.random(n) < np.where(late, high, low),
            rng.random(n) < low + (high - low) * ramp,
            rng.random(n) < low,
            rng.random(n) < np.where(late, low, high),
            (rng.random(n) < high)[: int(rng.integers(0, 50))],
            np.full(n // 3, i % 2),
            rng.beta(2, 8, n) + 0.3 * late * rng.random(n),
            rng.normal(size=n) + late * rng.uniform(-2, 2),
            np.round(rng.normal(50, 5, n) + 10 * ramp, int(rng.integers(0, 3))),
            1e4 * (i % 20 == 9) + rng.standard_t(2, n) * np.where(late, 3, 1),
        ]
        kind = i % 10
        if kind <= {"error": 5, "share": 6, "number": 9}[domain]:
            made.append(np.asarray(kinds[kind], dtype=np.float64))
    return made


@pytest.mark.parametrize(
    ("ours", "theirs", "domain", "limit"),
    [
        (ADWIN(), drift.ADWIN(), "number", None),
        (ADWIN(clock=1, delta=0.05), drift.ADWIN(clock=1, delta=0.05), "number", None),
        (
            ADWIN(clock=3, max_buckets=2, min_window_length=1, grace_period=0),
            drift.ADWIN(clock=3, max_buckets=2, min_window_length=1, grace_period=0),
            "number",
            None,
        ),
        (DDM(), drift.binary.DDM(), "share", None),
        (
            DDM(warm_start=5, warning_threshold=1, drift_threshold=1.5),
            drift.binary.DDM(warm_start=5, warning_threshold=1, drift_threshold=1.5),
            "error",
            None,
        ),
        (EDDM(), drift.binary.EDDM(), "error", None),
        (EDDM(warm_start=3, alpha=0.9, beta=0.7), drift.binary.EDDM(3, 0.9, 0.7), "error", None),
        (HDDMA(), drift.binary.HDDMA(), "share", None),
        (HDDMA(two_sided=True), drift.binary.HDDMA(**TWO_SIDED), "share", None),
        (HDDMW(), drift.binary.HDDMW(), "share", None),
        (HDDMW(two_sided=True, weight=0.2), drift.binary.HDDMW(lambda_val=0.2, **TWO_SIDED), "share", None),
        (KSWIN(seed=5, alpha=0.05), drift.KSWIN(seed=5, alpha=0.05), "number", 250),
        (
            KSWIN(seed=2**40, window_size=420, stat_size=4, alpha=0.1),
            drift.KSWIN(seed=2**40, window_size=420, stat_size=4, alpha=0.1),
            "number",
            520,
        ),
        (PageHinkley(), drift.PageHinkley(), "number", None),
        (PageHinkley(threshold=3.0, mode="up"), drift.PageHinkley(threshold=3.0, mode="up"), "number", None),
        (
            PageHinkley(threshold=2.0, alpha=1.0, delta=0, min_instances=1),
            drift.PageHinkley(threshold=2.0, alpha=1.0, delta=0, min_instances=1),
            "number",
            None,
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, Detector) else "",
)
def test_same_changes_and_warnings(ours: Detector, theirs: Any, domain: str, limit: int | None) -> None:
    total = 0
    for values in streams(domain):
        part = values[:limit]
        ours.reset()
        peer = theirs.clone()
        changes, warnings = [], []
        for at, x in enumerate(part.tolist()):
            peer.update(x)
            if peer.drift_detected:
                changes.append(at)
            if getattr(peer, "warning_detected", False):
                warnings.append(at)
        found = ours.update_many(part)
        assert list(found.changes) == changes
        assert list(found.warnings) == warnings
        total += len(changes)
    assert total > 10


def test_adwin_that_keeps_is_the_helper_without_resets() -> None:
    helper = pytest.importorskip("river._river_rust").drift.AdaptiveWindowing
    for clock in (1, 32):
        rng = np.random.default_rng(clock)
        values = rng.normal(np.repeat([0, 1, 0, 2], 1_500), 1)
        ours = ADWIN(clock=clock, after_change="keep")
        peer = helper(delta=0.002, clock=clock, max_buckets=5, min_window_length=5, grace_period=10)
        assert [ours.update(x).change for x in values.tolist()] == [peer.update(x) for x in values.tolist()]
        assert ours.width == peer.get_width()
        assert ours.mean == peer.get_total() / peer.get_width()
