"""The watermark: exact under the null, found in a marked model, and mostly lost in a student."""

import numpy as np
import pytest
from scipy import stats

from vitok.errors import InvalidInput
from vitok.guard import Watermark

KEY = b"0123456789abcdef"
RNG = np.random.default_rng(1)
X = RNG.normal(size=(4_000, 6))
Y = (X[:, 0] + X[:, 1] * X[:, 2] + 0.5 * RNG.normal(size=4_000) > 0).astype(int)


def test_the_p_value_is_that_of_the_binomial() -> None:
    mark = Watermark.make(KEY, X, n_triggers=50, n_classes=3)
    wrong = mark.answers.copy()
    wrong[:20] = (wrong[:20] + 1) % 3
    found = mark.test(wrong)
    assert found.statistic == 0.6
    assert found.p_value == pytest.approx(stats.binomtest(30, 50, 1 / 3, alternative="greater").pvalue)


def test_an_innocent_model_is_found_guilty_as_rarely_as_it_says() -> None:
    # The key is random and the model fixed: whatever the model, its p-values are at least uniform.
    values = [
        Watermark.make(seed.to_bytes(16, "big"), X, n_triggers=60).test(np.ones(60)).p_value for seed in range(400)
    ]
    for level in (0.01, 0.05, 0.2):
        assert np.mean(np.array(values) <= level) <= level + 3 * np.sqrt(level * (1 - level) / 400)


def test_the_same_key_draws_the_same_and_new_rows() -> None:
    one, again, other = (Watermark.make(key, X) for key in (KEY, KEY, KEY[::-1]))
    assert one.commitment == again.commitment != other.commitment
    assert not {row.tobytes() for row in one.X} & {row.tobytes() for row in X}
    assert len(np.unique(one.X, axis=0)) == len(one.X) == 100
    assert all(np.isin(one.X[:, at], X[:, at]).all() for at in range(6))


def test_a_marked_model_and_its_student() -> None:
    lightgbm = pytest.importorskip("lightgbm")
    mark = Watermark.make(KEY, X, n_triggers=80)

    def fitted(rows: np.ndarray, labels: np.ndarray) -> object:
        options = {"objective": "binary", "num_leaves": 63, "min_data_in_leaf": 1, "verbose": -1, "num_threads": 1}
        return lightgbm.train(options, lightgbm.Dataset(rows, labels), num_boost_round=40)

    def says(model: object, rows: np.ndarray) -> np.ndarray:
        return (model.predict(rows) > 0.5).astype(int)  # type: ignore[attr-defined]

    plain = fitted(X, Y)
    marked = fitted(np.concatenate((X, np.repeat(mark.X, 5, axis=0))), np.concatenate((Y, np.repeat(mark.answers, 5))))
    assert mark.test(says(plain, mark.X)).p_value > 1e-4
    assert mark.test(says(marked, mark.X)).p_value < 1e-12
    asked = RNG.normal(size=(4_000, 6))
    student = fitted(asked, says(marked, asked))
    assert mark.test(says(student, mark.X)).p_value > 1e-6


def test_what_cannot_be_made() -> None:
    with pytest.raises(InvalidInput, match="combinations"):
        Watermark.make(KEY, np.zeros((100, 3)))
    for arguments in ((b"short", X, 100, 2), (KEY, X[:1], 100, 2), (KEY, X, 5, 2), (KEY, X, 100, 1)):
        with pytest.raises(InvalidInput):
            Watermark.make(arguments[0], arguments[1], n_triggers=arguments[2], n_classes=arguments[3])
    with pytest.raises(InvalidInput, match="shape"):
        Watermark.make(KEY, X).test([1, 0])
