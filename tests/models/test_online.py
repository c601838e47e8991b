"""The model that learns online. Oracles: scikit-learn 1.9 (AUC, log loss, Poisson regression), hand computation."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import PoissonRegressor
from sklearn.metrics import log_loss, roc_auc_score

from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.features.fingerprints import fingerprint_texts
from vitok.models.calibrators import BetaCalibrator
from vitok.models.online import OnlineModel
from vitok.models.online_calibration import PowerCalibrator
from vitok.models.online_features import Category, HashedFeatures, Number
from vitok.models.online_ftrl import Rates
from vitok.models.online_memory import Learned
from vitok.models.online_sampling import NegativeSampling
from vitok.models.online_scoring import SnapshotFollower, columns_of, package_files
from vitok.models.online_state import pack_state, read_description, unpack_state
from vitok.models.online_validation import ProgressiveValidation

FEATURES = HashedFeatures(features=(Category("card"), Category("country"), Number("amount", 50, 20)), bits=10)
RATES = Rates(alpha=0.2, l1=0.05)


def draw(n: int, *, seed: int = 0, rate: float = 0.2) -> tuple[list[dict[str, Any]], Any]:
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=30)
    rows, labels = [], np.empty(n)
    for i in range(n):
        card, amount = int(rng.integers(0, 30)), float(rng.exponential(50))
        rows.append({"card": f"c{card}", "country": ["FR", "DE", None][card % 3], "amount": amount})
        odds = math.log(rate / (1 - rate)) + risk[card] + (amount - 50) / 80
        labels[i] = rng.random() < 1 / (1 + math.exp(-odds))
    return rows, labels


def learned(n: int = 800, **how: Any) -> OnlineModel:
    model = OnlineModel(FEATURES, rates=RATES, **how)
    model.learn_many(*draw(n))
    return model


def test_many_equals_one_by_one_in_every_bit() -> None:
    rows, labels = draw(300)
    one, many = OnlineModel(FEATURES, rates=RATES), OnlineModel(FEATURES, rates=RATES)
    names = ["FR" if row["country"] == "FR" else "else" for row in rows]
    together = many.learn_many(rows, labels, weights=1 + labels, slices=names)
    alone = [
        one.learn_one(row, label, weight=1 + label, slice_name=name)
        for row, label, name in zip(rows, labels.tolist(), names, strict=True)
    ]
    assert together.tolist() == alone
    assert one.to_bytes() == many.to_bytes()


def test_it_learns_what_there_is_to_learn() -> None:
    model = learned(6000)
    score = model.validation.score()
    assert score.roc_auc > 0.7
    assert score.relative_loss < 0.95
    assert "online model: 3 features in 1,024 slots" in str(model)
    assert model.uncertainty([{"card": "unseen"}])[0] > model.uncertainty([{"card": "c1", "amount": 50.0}])[0]


def test_a_bad_row_teaches_nothing() -> None:
    model = OnlineModel(FEATURES)
    for rows, labels in (([{"amount": "x"}], [1]), ([{}], [2]), ([{}], [1, 1])):
        with pytest.raises(InvalidInput):
            model.learn_many(rows, labels)
    with pytest.raises(InvalidInput, match="slices"):
        model.learn_many([{}], [1], slices=["a", "b"])
    assert model.to_bytes() == OnlineModel(FEATURES).to_bytes()


def test_progressive_figures_equal_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    p = rng.beta(1, 6, 5000)
    y, w = (rng.random(5000) < p).astype(float), rng.uniform(0.5, 3, 5000)
    names = np.where(p < 0.1, "low", "high").tolist()
    validation = ProgressiveValidation(half_lives=(math.inf, 700.0))
    validation.update(p[:123], y[:123], weights=w[:123], slices=names[:123])
    validation.update(p[123:], y[123:], weights=w[123:], slices=names[123:])
    decay = 2.0 ** (-(4999 - np.arange(5000)) / 700)
    for window, weight in ((0, w), (1, w * decay)):
        for name in ("all", "low", "high"):
            here = np.array([name in ("all", item) for item in names])
            a, b, c = p[here], y[here], weight[here]
            score = validation.score(window=window, slice_name=name)
            assert score.log_loss == pytest.approx(log_loss(b, a, sample_weight=c), rel=1e-9)
            # Ranks are those of 1024 bins of the log odds.
            assert score.roc_auc == pytest.approx(roc_auc_score(b, a, sample_weight=c), abs=2e-3)
            assert score.calibration_ratio == pytest.approx((c @ a) / (c @ b), rel=1e-9)
            assert score.n_effective == pytest.approx(c.sum() ** 2 / (c @ c), rel=1e-9)
            assert score.n_obs == here.sum()
    assert len(validation.scores()) == 6


def test_decayed_counts_stay_finite_for_ever() -> None:
    validation = ProgressiveValidation(half_lives=(1.0,))
    for _ in range(5):
        validation.update(np.full(1000, 0.25), np.arange(1000) % 2)
    score = validation.score()
    # With a half-life of one row the last counts as much as all before it: 2/3 of the weight is on the odd ones.
    assert score.positive_rate == pytest.approx(2 / 3)
    assert score.n_effective == pytest.approx(3.0)
    assert score.n_obs == 5000


def test_progressive_edges() -> None:
    validation = ProgressiveValidation(half_lives=(math.inf,))
    assert math.isnan(validation.score().log_loss)
    validation.update([0.0, 1.0], [0, 1])
    assert math.isfinite(validation.score().log_loss)
    validation.update([0.5] * 100, [1] * 100, slices=[f"s{i}" for i in range(100)])
    names = [score.slice for score in validation.scores()]
    assert len(names) == 66
    assert names[-1] == "others"
    assert validation.score(slice_name="others").n_obs == 36
    for wrong in (([0.5], [2]), ([1.5], [1]), ([math.nan], [1]), ([0.5, 0.5], [1])):
        with pytest.raises(InvalidInput):
            validation.update(*wrong)
    with pytest.raises(InvalidInput):
        validation.score(slice_name="nowhere")
    with pytest.raises(InvalidInput):
        ProgressiveValidation(half_lives=(0.0,))


def test_power_calibration_equals_poisson_regression() -> None:
    rng = np.random.default_rng(2)
    p = rng.beta(0.6, 20, 40_000) + 1e-6
    y = rng.random(40_000) < np.minimum(1.8 * p**1.2, 1)
    ours = PowerCalibrator.fit(p, y)
    theirs = PoissonRegressor(alpha=0, tol=1e-10, max_iter=2000).fit(np.log(p)[:, None], y)
    assert ours.kappa == pytest.approx(theirs.coef_[0], rel=1e-4)
    assert math.log(ours.gamma) == pytest.approx(theirs.intercept_, rel=1e-3)
    assert ours.kappa == pytest.approx(1.2, abs=0.06)
    again = PowerCalibrator.from_dict(json.loads(json.dumps(ours.to_dict())))
    assert again == ours
    out = ours(np.array([0.0, 1e-300, 0.5, 1.0]))
    assert (np.diff(out) >= 0).all()
    assert out.min() > 0
    assert out.max() < 1


def test_power_calibration_edges() -> None:
    assert PowerCalibrator.fit([0.9, 0.8, 0.1], [0, 0, 1]).kappa == 0.0
    one = PowerCalibrator.fit_counts([0.1], [20], [100])
    assert one(np.array([0.1])).tolist() == pytest.approx([0.2])
    for wrong in (([0.5], [0], [1]), ([], [], []), ([1.5], [1], [1]), ([0.5], [2], [1])):
        with pytest.raises(InvalidInput):
            PowerCalibrator.fit_counts(*wrong)
    for broken in ({}, {"gamma": 0.0, "kappa": 1.0}, {"gamma": "x", "kappa": 1.0}):
        with pytest.raises(InvalidInput):
            PowerCalibrator.from_dict(broken)


def test_recalibration_mends_what_unweighted_subsampling_broke() -> None:
    rows, labels = draw(20_000, rate=0.05)
    ids = [f"r{i}" for i in range(len(rows))]
    sampling = NegativeSampling(0.2)
    kept, _ = sampling.keep(ids, labels)
    wrong = OnlineModel(FEATURES, rates=RATES)
    chosen = [row for row, keep in zip(rows, kept, strict=True) if keep]
    wrong.learn_many(chosen, labels[kept])
    right = OnlineModel(FEATURES, rates=RATES)
    taken, p = right.learn_sampled(rows, labels, ids=ids, sampling=sampling)
    assert (taken == kept).all()
    assert len(p) == kept.sum()
    fresh, theirs = draw(20_000, seed=9, rate=0.05)
    # The same cards, other rows.
    rate = draw(20_000, rate=0.05)[1].mean()
    assert wrong.predict(rows).mean() > 2.5 * rate
    assert right.predict(rows).mean() == pytest.approx(rate, rel=0.1)
    assert right.validation.score(window=1).calibration_ratio == pytest.approx(1.0, abs=0.12)
    wrong.validation = ProgressiveValidation()
    wrong.learn_many(rows[:0], [])
    assert wrong.recalibrate() is None
    wrong.validation.update(wrong.predict(rows), labels)
    found = wrong.recalibrate(window=1)
    assert found is wrong.calibrator is not None
    assert wrong.predict(rows).mean() == pytest.approx(rate, rel=0.02)
    assert len(fresh) == len(theirs)


def test_which_negatives_are_kept_follows_from_their_ids() -> None:
    sampling = NegativeSampling(0.3)
    ids = [f"r{i}" for i in range(50_000)]
    labels = (np.arange(50_000) % 50 == 0).astype(float)
    kept, weights = sampling.keep(ids, labels)
    assert kept[labels == 1].all()
    assert (weights[labels == 1] == 1).all()
    assert kept[labels == 0].mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 49_000))
    assert weights.sum() == pytest.approx(50_000, rel=0.02)
    alone = [sampling.keep([ids[i]], labels[i : i + 1])[0][0] for i in range(200)]
    assert alone == kept[:200].tolist()
    assert NegativeSampling(1.0).keep(["a"], [0.0])[1].tolist() == [1.0]
    assert sampling.keep([], [])[0].tolist() == []
    for rate in (0.0, 1.5):
        with pytest.raises(InvalidInput):
            NegativeSampling(rate)
    with pytest.raises(InvalidInput):
        sampling.keep(["a"], [0, 0])


def test_a_snapshot_is_the_same_model(tmp_path: Path) -> None:
    model = learned(validation=ProgressiveValidation(half_lives=(100.0, math.inf)))
    model.learn_many([{}], [1], slices=["late"])
    model.calibrator = BetaCalibrator(a=1.0, b=1.1, c=-0.2)
    path = tmp_path / "m.online"
    model.save(path)
    again = OnlineModel.load(path, features=FEATURES)
    assert again.to_bytes() == model.to_bytes() == path.read_bytes()
    rows, labels = draw(100, seed=5)
    assert again.predict(rows).tolist() == model.predict(rows).tolist()
    assert again.learn_many(rows, labels).tolist() == model.learn_many(rows, labels).tolist()
    assert again.to_bytes() == model.to_bytes()
    model.recalibrate(least_positives=1)
    assert OnlineModel.from_bytes(model.to_bytes()).calibrator == model.calibrator
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.online"]


def test_a_damaged_snapshot_is_refused(tmp_path: Path) -> None:
    content = learned(50).to_bytes()
    path = tmp_path / "m.online"
    for at in (0, 9, 15, 25, 40, 200, len(content) - 1):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(StoreError):
            OnlineModel.load(path)
    for size in (0, 10, 60, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(StoreError):
            OnlineModel.load(path)
    with pytest.raises(StoreError, match="cannot be read"):
        OnlineModel.load(tmp_path / "absent")
    with pytest.raises(StoreError, match="cannot be written"):
        learned(50).save(tmp_path / "absent" / "m.online")
    about, arrays = unpack_state(content, "here")
    with pytest.raises(StoreError, match="hash"):
        OnlineModel.from_bytes(pack_state({**about, "features_hash": "0"}, arrays))
    with pytest.raises(StoreError, match="no snapshot"):
        OnlineModel.from_bytes(pack_state({}, {}))
    path.write_bytes(content)
    with pytest.raises(Conflict, match="of the features"):
        OnlineModel.load(path, features=HashedFeatures(features=FEATURES.features, bits=11))


def test_a_description_is_read_without_the_arrays(tmp_path: Path) -> None:
    path = tmp_path / "m.online"
    learned(50).save(path)
    content = path.read_bytes()
    about, _ = unpack_state(content, "here")
    text = read_description(path)
    assert json.loads(text)["about"] == about
    # What lies behind the description is not looked at, and what lies before it is.
    at = content.index(text) + len(text)
    path.write_bytes(content[:at])
    assert read_description(path) == text
    for wrong, told in (
        (b"", "no snapshot"),
        (content[:40], "no snapshot"),
        (b"x" + content[1:], "no snapshot"),
        (content[: at - 1], "cut off"),
        (content[:8] + b"\x07" + content[9:], "has version 7"),
        (content[:12] + b"\xff" * 8 + content[20:], "cut off"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(StoreError, match=told):
            read_description(path)
    path.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        read_description(path)


def test_a_full_disk_leaves_the_snapshot_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    path = tmp_path / "m.online"
    learned(50).save(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        learned(90).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.online"]


def test_warm_restart_takes_weights_and_starts_counting_anew(tmp_path: Path) -> None:
    good = learned(800)
    path = tmp_path / "good"
    good.save(path)
    poisoned = OnlineModel.load(path)
    rows, labels = draw(500, seed=3)
    poisoned.learn_many(rows, 1 - labels)
    assert poisoned.predict(rows).tolist() != good.predict(rows).tolist()
    poisoned.warm_restart(path)
    assert poisoned.predict(rows).tolist() == good.predict(rows).tolist()
    assert poisoned.validation.score().n_obs == 0
    poisoned.warm_restart(good, memory=0.1)
    assert np.abs(poisoned.predict(rows) - good.predict(rows)).max() < 1e-14
    # With larger rates one more look moves it further.
    assert poisoned.uncertainty(rows).sum() > 1.5 * good.uncertainty(rows).sum()
    before = poisoned.to_bytes()
    with pytest.raises(InvalidInput, match="memory"):
        poisoned.warm_restart(good, memory=2.0)
    assert poisoned.to_bytes() == before
    with pytest.raises(Conflict, match="start"):
        poisoned.warm_restart(OnlineModel(FEATURES))
    good.learn_many(rows, labels)
    assert poisoned.to_bytes() == before


def test_a_start_from_a_batch_model_says_what_it_says() -> None:
    features = HashedFeatures(features=(Number("champion", limit=30.0), Category("card"), Number("amount")), bits=12)
    model = OnlineModel(features, rates=Rates(alpha=0.05, l1=0.2, l2=0.1))
    model.start_from_batch({"champion": 1.0, ("card", "c1"): 0.5, "constant": -0.25})
    odds = np.array([-4.0, 0.0, 2.0])
    rows = [{"champion": x, "card": "c1" if x == 0 else "c2", "amount": 0.0} for x in odds]
    wanted = odds + np.where(odds == 0, 0.5, 0.0) - 0.25
    assert model.predict(rows) == pytest.approx(1 / (1 + np.exp(-wanted)), rel=1e-12)
    with pytest.raises(InvalidInput):
        model.start_from_batch({"nothing": 1.0})
    with pytest.raises(InvalidInput):
        model.start_from_batch({"champion": math.nan})
    tiny = OnlineModel(HashedFeatures(features=(Number("a"), Number("b")), bits=1))
    with pytest.raises(InvalidInput, match="different slots"):
        tiny.start_from_batch({"a": 1.0, "b": 1.0, "constant": 0.0})


@pytest.mark.parametrize("matrix", [False, True])
def test_a_package_is_served_as_any_other(tmp_path: Path, matrix: bool) -> None:
    from vitok.registry.package import write_package
    from vitok.serving.runtime import Runtime

    features = FEATURES
    if matrix:
        features = HashedFeatures(features=(Category("hour"), Number("amount", 50, 20)), bits=10)
    model = OnlineModel(features, rates=RATES)
    rows, labels = draw(400)
    rows = [{**row, "hour": i % 24} for i, row in enumerate(rows)]
    rows[3]["amount"] = None
    model.learn_many(rows, labels)
    model.recalibrate(least_positives=1)
    names = ["hour", "unused", "amount"] if matrix else None
    package = write_package(
        tmp_path / "1", name="fraud", version=1, created=0, files=package_files(model, rows, names=names)
    )
    runtime = Runtime.load(package)
    wanted = model.predict(rows)
    model.learn_many(rows, labels)
    if matrix:
        X = np.array([[row["hour"], 9.0, np.nan if row["amount"] is None else row["amount"]] for row in rows])
        assert runtime.n_features == 3
        assert runtime.score(X).tolist() == wanted.tolist()
        assert (columns_of(X, names or [])["amount"][:3] == X[:3, 2]).all()
    else:
        inputs = {name: np.array([(row[name] or "").encode() for row in rows], object) for name in ("card", "country")}
        inputs["amount"] = np.array([np.nan if row["amount"] is None else row["amount"] for row in rows])
        assert runtime.infer(inputs)["output"].tolist() == wanted.tolist()


def test_what_is_packaged_is_checked() -> None:
    with pytest.raises(InvalidInput, match="names"):
        package_files(learned(10), [{}], names=["amount"])
    with pytest.raises(InvalidInput, match="matrix"):
        columns_of(np.zeros((2, 3)), ["a"])
    files = package_files(learned(10), {"card": ["a"], "country": [None], "amount": [math.nan]})
    assert files["examples.json"]["inputs"] == {"card": ["a"], "country": [""], "amount": [None]}


def test_a_follower_keeps_the_model_that_it_has(tmp_path: Path) -> None:
    path = tmp_path / "shadow.online"
    with pytest.raises(StoreError):
        SnapshotFollower(path)
    model = learned(100)
    model.save(path)
    follower = SnapshotFollower(path)
    rows, labels = draw(50)
    wanted = model.predict(rows).tolist()
    assert follower.predict(rows).tolist() == wanted
    path.write_bytes(b"torn")
    assert not follower.refresh()
    assert follower.failures == 1
    path.unlink()
    assert follower.predict(rows).tolist() == wanted
    OnlineModel(HashedFeatures(features=(Category("card"),), bits=5)).save(path)
    assert not follower.refresh()
    model.learn_many(rows, labels)
    model.save(path)
    assert follower.predict(rows).tolist() == model.predict(rows).tolist()
    assert follower.failures == 2


def test_what_was_learned_is_remembered_and_forgotten() -> None:
    memory = Learned()
    keys = fingerprint_texts([f"r{i}" for i in range(5000)])
    for start in range(0, 5000, 700):
        part = np.arange(start, min(start + 700, 5000))
        memory.add(keys[part], part % 2 * 1.0, np.ones(len(part)), part)
    assert memory.find(keys).tolist() == list(range(5000))
    memory.forget_some(2000)
    assert len(memory) == 5000
    memory.forget_some(3000)
    assert len(memory) == 2000
    assert memory.find(keys[:3000]).max() == -1
    assert memory.find(keys[3000:]).tolist() == list(range(2000))
    memory.labels[0] = 7.0
    again = Learned.from_arrays(memory.to_arrays())
    assert again.times.tolist() == memory.times.tolist()
    assert again.labels[0] == 7.0
    assert again.find(keys[3000:]).tolist() == list(range(2000))
