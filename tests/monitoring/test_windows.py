"""Windows, baselines and volumes. Oracles: the same statistics one window at a time, scipy's negative binomial."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats as oracle

from vitok import ids
from vitok.clock import DAY, HOUR
from vitok.decisions import DecisionBlock, DecisionLog, LogSchema, Tail
from vitok.errors import Conflict, InvalidInput
from vitok.monitoring import (
    Baseline,
    ExpectedVolume,
    HourSealer,
    ReferenceProfile,
    Sketches,
    drift,
    drift_series,
    windows,
)
from vitok.monitoring.baselines import WEEK, YEAR
from vitok.monitoring.hours import decode, encode, merge


def logged(seed: int, n: int, start: int, hours: int, *, shift: float = 0.0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "event_time": pl.Series(start + rng.integers(0, hours * HOUR, n)).cast(pl.Datetime("us", "UTC")),
            "model_version": ["m/1"] * n,
            "route": ["champion"] * n,
            "feature_status": ["fresh"] * n,
            "action": rng.choice(["allow", "block"], n),
            "probability": rng.beta(1, 20, n),
            "latency_us": rng.integers(100, 900, n),
            "country": rng.choice(["AT", "CH", "DE", "LI", None], n, p=[0.4, 0.3, 0.2, 0.02, 0.08]),
            "f_x": np.where(rng.random(n) < 0.05, np.nan, rng.normal(size=n) + shift),
            "f_y": rng.poisson(2.0, n).astype(float),
        }
    )


@pytest.fixture(scope="module")
def sliced() -> ReferenceProfile:
    rows = logged(0, 20_000, 0, 24 * 7)
    return ReferenceProfile.fit(
        ["x", "y"],
        rows.select("f_x", "f_y").to_numpy(),
        rows["probability"].to_numpy(),
        start=0,
        end=WEEK,
        slices={"country": rows["country"].to_list()},
        max_slices=3,
        n_random_features=16,
    )


@pytest.fixture
def sketches(tmp_path: Path) -> Sketches:
    return Sketches(tmp_path / "sketches.sqlite")


def test_series_equals_one_window_at_a_time(sliced: ReferenceProfile, sketches: Sketches) -> None:
    sketches.add(logged(1, 30_000, 10 * DAY, 12), sliced)
    sketches.add(logged(2, 20_000, 10 * DAY + 12 * HOUR, 12, shift=0.5), sliced)
    hours = sketches.series("m/1", 10 * DAY, 11 * DAY)
    assert hours is not None
    series = drift_series(sliced, hours)
    assert series.psi.shape == (24, 3)
    for at in (0, 5, 23):
        start = int(series.starts[at])
        window = sketches.window("m/1", start, start + HOUR)
        assert window is not None
        report = drift(sliced, window)
        for column, name in enumerate(series.columns):
            found = report.of(name)
            assert series.psi[at, column] == pytest.approx(found.psi, rel=1e-9)
            assert series.ks[at, column] == pytest.approx(found.statistic("ks").value, rel=1e-9)
            assert series.shift[at, column] == pytest.approx(found.shift, abs=0.004)
    day = drift_series(sliced, hours, every=DAY)
    assert day.n.tolist() == [50_000]
    assert series.shift[12:, 0].min() > 0.2 > series.shift[:12, 0].max()


def test_all_lengths_come_from_the_same_hours(sliced: ReferenceProfile, sketches: Sketches) -> None:
    sketches.add(logged(3, 5_000, 0, 24 * 20), sliced)
    found = windows(sketches, "m/1", 20 * DAY + HOUR // 2)
    counted = {name: None if window is None else window.n for name, window in found.items()}
    assert counted["30d"] == 5_000
    assert counted["1h"] is not None
    assert counted["1d"] is not None
    assert counted["7d"] is not None
    assert counted["1h"] <= counted["1d"] <= counted["7d"] <= 5_000


def test_sealed_hours_say_what_the_rows_say(sliced: ReferenceProfile, sketches: Sketches, tmp_path: Path) -> None:
    parts = [logged(4, 3_000, 0, 5), logged(5, 2_000, 3 * HOUR, 5), logged(6, 1, 0, 1)]
    for part in parts:
        sketches.add(part, sliced)
    sealer = HourSealer(lambda version: sliced)
    sealed = [(f"segment-{at:08}", sealer(part.to_arrow(), "s")["hours"]) for at, part in enumerate(parts)]
    other = Sketches(tmp_path / "other.sqlite")
    assert other.absorb(sealed[:2]) == 5_000
    assert other.absorb(sealed) == 1
    one, two = sketches.window("m/1", 0, DAY), other.window("m/1", 0, DAY)
    assert one is not None
    assert two is not None
    assert one.counts.tolist() == two.counts.tolist()
    assert one.joint == pytest.approx(two.joint)
    assert one.latency.to_dict() == two.latency.to_dict()
    assert one.actions == two.actions
    merged = merge([decode(data)[0] for _, data in sealed])
    assert merged.counts.sum(axis=0).tolist() == one.counts.tolist()
    assert decode(encode([merged]))[0].numbers == merged.numbers
    # Oracle for slices: polars' own counts, the rare and the null among "other".
    rows = pl.concat(parts)
    truth = {value: int((rows["country"] == value).sum()) for value in ("AT", "CH", "DE")}
    truth["other"] = rows.height - sum(truth.values())
    assert {each.value: each.n for each in sketches.slices("m/1", 0, DAY)} == truth
    assert {value: merged.of_slice("country", value)[0] for value in truth} == truth
    assert merged.between(HOUR, 2 * HOUR).n_total == sketches.volumes(HOUR, 2 * HOUR)[HOUR]
    assert merged.between(2 * HOUR, 8 * HOUR).of_slice("country", "AT")[0] < truth["AT"]
    with pytest.raises(InvalidInput, match="begin with"):
        decode(b"something else entirely")


def test_a_log_counts_its_segments_when_it_seals_them(tmp_path: Path, sketches: Sketches) -> None:
    rng = np.random.default_rng(0)
    schema = LogSchema("fraud", ("customer_id",), (("country", "string"),), ("x", "y"))
    X, p = rng.normal(size=(600, 2)), rng.beta(1, 20, 600)
    country = rng.choice(["AT", "CH"], 600)
    profile = ReferenceProfile.fit(["x", "y"], X, p, start=0, end=1, slices={"country": country})
    sealer = HourSealer({"m/1": profile}.get)
    with DecisionLog(tmp_path / "log", schema, rows_per_segment=200, on_seal=sealer) as log:
        for first in range(0, 600, 100):
            rows = slice(first, first + 100)
            block = DecisionBlock(
                decision_id=[ids.uuid7() for _ in range(100)],
                request_id=[f"r{first + at}" for at in range(100)],
                event_time=np.arange(first, first + 100) * HOUR // 50,
                ingest_time=np.arange(first, first + 100) * HOUR // 50,
                entities=[["c"] * 100],
                request=[country[rows].tolist()],
                features=X[rows],
                feature_status=["fresh"] * 100,
                model_version=["m/1"] * 100,
                stage=["Production"] * 100,
                route=["champion"] * 100,
                route_reason=[""] * 100,
                score=p[rows],
                probability=p[rows],
                shadow_version=[None] * 100,
                shadow_probability=np.full(100, np.nan),
                policy_version=["tiers/1"] * 100,
                action=["allow"] * 100,
                propensity=np.ones(100),
                latency_us=np.full(100, 900, dtype=np.int32),
                cost=np.full(100, 1e-5),
            )
            log.append(block)
        log.seal()
        sealed = [(found.segment, found.data) for found in log.sidecars("hours")]
    assert sketches.absorb(sealed) == 600
    followed = Sketches(tmp_path / "followed.sqlite")
    frame = Tail(tmp_path / "log").read()
    assert frame is not None
    followed.follow(frame, {"m/1": profile}.get)
    one, two = sketches.window("m/1", 0, DAY), followed.window("m/1", 0, DAY)
    assert one is not None
    assert two is not None
    assert one.n_hours == 12
    assert one.counts.tolist() == two.counts.tolist() == np.concatenate(profile.counts).tolist()
    pairs = zip(sketches.slices("m/1", 0, DAY), followed.slices("m/1", 0, DAY), strict=True)
    assert all(a.n == b.n and a.counts.tolist() == b.counts.tolist() for a, b in pairs)


def test_bins_of_another_profile_are_refused(sliced: ReferenceProfile, sketches: Sketches) -> None:
    sketches.add(logged(7, 1_000, 0, 2), sliced)
    other = ReferenceProfile.fit(["x", "y"], [[1.0, 2.0], [3.0, 4.0]], [0.1, 0.2], start=0, end=1)
    hours, window = sketches.series("m/1", 0, DAY), sketches.window("m/1", 0, DAY)
    assert hours is not None
    assert window is not None
    with pytest.raises(Conflict, match="bins"):
        drift_series(other, hours)
    with pytest.raises(Conflict, match="training was counted"):
        drift(sliced, window, baseline=Baseline.training(other))
    assert sketches.series("m/2", 0, DAY) is None


def test_a_season_is_no_drift_against_the_same_season(sliced: ReferenceProfile, sketches: Sketches) -> None:
    start = 60 * WEEK
    for day, back in ((1, YEAR), (2, WEEK), (3, 0)):
        sketches.add(logged(day, 4_000, start - back, 24, shift=0.8), sliced)
    window = sketches.window("m/1", start, start + DAY)
    assert window is not None
    assert drift(sliced, window).of("x").shift > 0.4
    for back, name in ((WEEK, "last week"), (YEAR, "last year")):
        baseline = Baseline.season(sketches, "m/1", start, start + DAY, back=back)
        assert baseline is not None
        report = drift(sliced, window, baseline=baseline)
        assert (report.baseline, report.n_reference) == (name, 4_000)
        assert report.of("x").effect < 0.02
        assert f"of {name}" in str(report)
    assert Baseline.season(sketches, "m/1", start, start + DAY, back=3 * DAY) is None
    healthy = Baseline.production(window, name="release week")
    assert drift(sliced, window, baseline=healthy).of("x").psi == 0.0


def test_a_season_before_the_version_began_is_counted_from_the_log(
    sliced: ReferenceProfile, sketches: Sketches
) -> None:
    start = 60 * WEEK
    sketches.add(logged(1, 4_000, start, 24, shift=0.8), sliced)
    window = sketches.window("m/1", start, start + DAY)
    assert window is not None
    assert Baseline.season(sketches, "m/1", start, start + DAY, back=YEAR) is None
    before = logged(2, 3_000, start - YEAR, 24, shift=0.8).with_columns(model_version=pl.lit("m/0"))
    baseline = Baseline.of_rows(sliced, before, start - YEAR, start - YEAR + DAY, name="last year")
    counts = sliced.layout.count(before.select("f_x", "f_y", "probability").to_numpy())
    assert baseline.counts.tolist() == counts.tolist()
    report = drift(sliced, window, baseline=baseline)
    assert (report.baseline, report.n_reference) == ("last year", 3_000)
    assert report.of("x").effect < 0.02 < drift(sliced, window).of("x").effect
    again = Baseline.of_rows(sliced, before, 0, DAY, name="scored anew", probability=np.full(3_000, 0.5))
    assert again.counts[-sliced.edges[-1].n_bins :].max() == 3_000
    for rows, probability, said in (
        (before.drop("f_y"), None, "f_y"),
        (before.clear(), None, "at least one"),
        (before.with_columns(f_x=pl.lit("wide")), None, "f_x: "),
        (before, [0.1], "probability"),
    ):
        with pytest.raises(InvalidInput, match=said):
            Baseline.of_rows(sliced, rows, 0, DAY, name="odd", probability=probability)


def test_joint_drift_of_a_window(sliced: ReferenceProfile, sketches: Sketches) -> None:
    sketches.add(logged(8, 4_000, 0, 24), sliced)
    window = sketches.window("m/1", 0, DAY)
    assert window is not None
    report = drift(sliced, window)
    assert report.joint is not None
    assert report.joint.p_value > 1e-3
    assert ReferenceProfile.from_dict(sliced.to_dict()) == sliced


def test_expected_volume_follows_the_negative_binomial() -> None:
    rng = np.random.default_rng(0)
    level = 40 + 30 * np.sin(np.arange(168) * 2 * np.pi / 24)
    past = {hour * HOUR: int(rng.poisson(level[hour % 168] * rng.gamma(20, 1 / 20))) for hour in range(6 * 168)}
    expected = ExpectedVolume.fit(past)
    assert expected.by_hour == pytest.approx(1 / 20, rel=0.35)
    start = 6 * WEEK
    check = expected.check(5, start, start + HOUR, level=0.01)
    mean = expected.mean[0]
    variation = (expected.by_day + expected.by_hour) * (1 + 1 / 6) + 1 / (6 * mean)
    assert check.p_value == pytest.approx(oracle.nbinom(1 / variation, 1 / (1 + variation * mean)).cdf(5), rel=1e-6)
    law = oracle.nbinom(1 / variation, 1 / (1 + variation * mean))
    assert check.lower == int(law.ppf(0.01))
    quiet = [
        expected.check(
            int(rng.poisson(level[h % 168] * rng.gamma(20, 1 / 20))), start + h * HOUR, start + h * HOUR + HOUR
        )
        for h in range(2_000)
    ]
    assert sum(one.is_low for one in quiet) <= 4
    with pytest.raises(InvalidInput, match="a week"):
        ExpectedVolume.fit({0: 1})
