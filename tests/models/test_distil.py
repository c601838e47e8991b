"""Oracles: the teacher's own scores, and cross-entropy by hand; times only where they are made up."""

from typing import Any

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.models import fit_boosted_trees
from vitok.models.distil import LogisticStudent, NetworkStudent, TreeStudent, distil
from vitok.models.tradeoffs import Bounds

NAMES = ["a", "b", "c"]
LOOSE = Bounds(auc=1, log_loss=9, calibration=1, flips=1, saving=0)


@pytest.fixture(scope="module")
def data() -> Any:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 3))
    return X, (2 * X[:, 0] + 6 * np.abs(X[:, 1]) + rng.logistic(size=3000) > 4).astype(int)


def ticking() -> Any:
    now = iter(range(0, 10**12, 1000))
    return lambda: next(now)


def test_students_learn_the_teacher_and_are_refused_where_they_do_not(data: Any) -> None:
    X, y = data
    teacher = fit_boosted_trees(X[:1500], y[:1500], names=NAMES, n_trees=60)
    found = distil(
        teacher,
        X[:2000],
        held_out=(X[1500:], y[1500:]),
        names=NAMES,
        batch_sizes={1: 3, 64: 1},
        students=[TreeStudent(trees=60), LogisticStudent(), NetworkStudent(hidden=(16,), epochs=20)],
        rounds=1,
        clock=ticking(),
    )
    trees, logistic, network = found.students
    assert trees.loss is not None
    assert logistic.loss is not None
    assert network.loss is not None
    assert trees.loss.log_loss < 0.05
    # No line follows |b|; the network bends.
    assert logistic.loss.log_loss > 0.05
    assert any("log loss" in reason for reason in logistic.reasons)
    assert network.loss.log_loss < logistic.loss.log_loss
    assert trees.converted is not None
    assert trees.converted.engine == "forest"
    assert network.converted is not None
    assert network.converted.engine == "onnx"
    assert set(trees.converted.files()) >= {"model.forest", "signature.json", "examples.json"}
    # All took the same made-up time, so nothing is saved and the teacher stays.
    assert found.chosen is None
    text = str(found)
    assert "chosen: the teacher" in text
    assert "logistic regression: refused" in text


def test_the_fastest_accepted_student_is_chosen(data: Any) -> None:
    X, y = data
    now = 0

    def clock() -> int:
        return now

    def teacher(rows: np.ndarray) -> np.ndarray:
        nonlocal now
        now += 1_000_000
        return 1 / (1 + np.exp(0.7 - rows[:, 0] - np.abs(rows[:, 1])))

    found = distil(
        teacher,
        X[:1000],
        held_out=(X[2000:], y[2000:]),
        batch_sizes={1: 1},
        students=[LogisticStudent()],
        bounds=LOOSE,
        rounds=3,
        clock=clock,
    )
    assert found.chosen is not None
    assert found.chosen.time_ratio == 0
    assert "chosen: logistic regression, 100% saved" in str(found)


def test_missing_values_and_a_column_of_nothing_are_learnt_too(data: Any) -> None:
    X, y = data
    X = np.column_stack([X, np.full(len(X), np.nan)])
    X[::5, 1] = np.nan
    found = distil(
        lambda rows: 1 / (1 + np.exp(-rows[:, 0])),
        X[:1000],
        held_out=(X[2000:], y[2000:]),
        batch_sizes={1: 1},
        students=[TreeStudent(trees=5), LogisticStudent()],
        bounds=LOOSE,
        rounds=1,
        clock=ticking(),
    )
    assert all(student.quality is not None for student in found.students)


def test_inputs_that_cannot_be(data: Any) -> None:
    X, y = data
    good: dict[str, Any] = {"held_out": (X, y), "batch_sizes": {1: 1}, "rounds": 1}
    with pytest.raises(InvalidInput, match="have shapes"):
        distil(lambda rows: rows[:, 0], X[:, :2], **good)
    with pytest.raises(InvalidInput, match="have shapes"):
        distil(lambda rows: rows[:, 0], X[:0], **good)
    with pytest.raises(InvalidInput, match="at least one kind"):
        distil(lambda rows: rows[:, 0], X, students=[], **good)
    with pytest.raises(InvalidInput, match="probabilities"):
        distil(lambda rows: rows[:, 0], X, **good)
