"""FTRL-Proximal. Oracles: Algorithm 1 of McMahan et al. 2013 in plain Python, and Vowpal Wabbit 9.11.9 (--ftrl)."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitok.errors import InvalidInput
from vitok.models.online_ftrl import Ftrl, Rates

BITS = 10
GRID = [Rates(alpha=0.5), Rates(alpha=0.1, l1=1.0), Rates(alpha=0.05, beta=2.0, l1=0.3, l2=1.5), Rates(l2=0.5, beta=0)]


def draw(n: int, *, seed: int, k: int = 6) -> tuple[Any, Any, Any]:
    """Rows of k distinct slots, of which some come often, with labels that depend on them."""
    rng = np.random.default_rng(seed)
    slots = np.empty((n, k), np.uint32)
    for i in range(n):
        slots[i] = rng.permutation(np.unique(rng.zipf(1.4, 400) % (1 << BITS)))[:k]
    values = np.where(rng.random((n, k)) < 0.5, 1.0, rng.normal(size=(n, k)))
    truth = rng.normal(size=1 << BITS)
    labels = (rng.random(n) < 1 / (1 + np.exp(-(truth[slots] * values).sum(axis=1)))).astype(float)
    return slots, values, labels


def algorithm_1(slots: Any, values: Any, labels: Any, weights: Any, rates: Rates) -> tuple[list[float], Any, Any]:
    """The paper's pseudocode, with dictionaries and the weight of section 4.6."""
    z: dict[int, float] = {}
    n: dict[int, float] = {}
    predicted = []
    for row, x, y, importance in zip(slots.tolist(), values.tolist(), labels.tolist(), weights.tolist(), strict=True):
        w = {}
        for i in row:
            zi, ni = z.get(i, 0.0), n.get(i, 0.0)
            if abs(zi) <= rates.l1:
                w[i] = 0.0
            else:
                sign = 1.0 if zi > 0 else -1.0
                w[i] = -1.0 / ((rates.beta + math.sqrt(ni)) / rates.alpha + rates.l2) * (zi - sign * rates.l1)
        p = 1.0 / (1.0 + math.exp(-sum(w[i] * xi for i, xi in zip(row, x, strict=True))))
        predicted.append(p)
        for i, xi in zip(row, x, strict=True):
            g = importance * (p - y) * xi
            ni = n.get(i, 0.0)
            sigma = (math.sqrt(ni + g * g) - math.sqrt(ni)) / rates.alpha
            z[i] = z.get(i, 0.0) + g - sigma * w[i]
            n[i] = ni + g * g
    return predicted, z, n


@pytest.mark.parametrize("rates", GRID)
def test_equals_algorithm_1_of_the_paper(rates: Rates) -> None:
    slots, values, labels = draw(2000, seed=1)
    weights = np.random.default_rng(2).choice([1.0, 0.5, 4.0], 2000)
    expected, z, n = algorithm_1(slots, values, labels, weights, rates)
    model = Ftrl(bits=BITS, rates=rates)
    assert np.abs(model.learn_many(slots, values, labels, weights=weights) - expected).max() <= 1e-12
    for slot in z:
        assert model.state[slot].tolist() == pytest.approx([z[slot], n[slot]], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("rates", GRID[:3])
def test_equals_vowpal_wabbit(rates: Rates) -> None:
    vw = pytest.importorskip("vowpalwabbit", reason="the oracle vowpalwabbit is installed by make test-libraries")
    slots, values, labels = draw(4000, seed=3)
    values = values.astype(np.float32).astype(np.float64)
    options = f"--ftrl -b 18 --noconstant --loss_function logistic --quiet --ftrl_alpha {rates.alpha} "
    workspace = vw.Workspace(options + f"--ftrl_beta {rates.beta} --l1 {rates.l1} --l2 {rates.l2}")
    theirs = []
    for row, x, y in zip(slots.tolist(), values.tolist(), labels.tolist(), strict=True):
        text = f"{1 if y else -1} | " + " ".join(f"{slot}:{value!r}" for slot, value in zip(row, x, strict=True))
        example = workspace.example(text)
        workspace.learn(example)
        theirs.append(example.get_partial_prediction())
        workspace.finish_example(example)
    workspace.finish()
    ours = Ftrl(bits=BITS, rates=rates).learn_many(slots, values, labels)
    # Vowpal Wabbit computes in 32 bits.
    assert np.abs(ours - 1 / (1 + np.exp(-np.array(theirs)))).max() <= 1e-6


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    rates=st.builds(Rates, alpha=st.floats(0.01, 2), l1=st.floats(0, 2), l2=st.floats(0, 2)),
    seed=st.integers(0, 5),
)
@settings(max_examples=25, deadline=None)
def test_batches_equal_one_by_one_in_every_bit(sizes: list[int], rates: Rates, seed: int) -> None:
    n = sum(sizes)
    rng = np.random.default_rng(seed)
    # Slots that repeat within a row as well.
    slots, values = rng.integers(0, 64, (n, 5)).astype(np.uint32), rng.normal(size=(n, 5))
    labels, weights = (rng.random(n) < 0.3).astype(float), rng.uniform(0, 3, n)
    one, many = Ftrl(bits=6, rates=rates), Ftrl(bits=6, rates=rates)
    alone = []
    for i in range(n):
        before = one.predict(slots[i : i + 1], values[i : i + 1])[0]
        alone.append(one.learn_one(slots[i], values[i], labels[i], weight=weights[i]))
        assert alone[-1] == before
    together = []
    for i, size in enumerate(sizes):
        at = slice(sum(sizes[:i]), sum(sizes[:i]) + size)
        together += many.learn_many(slots[at], values[at], labels[at], weights=weights[at]).tolist()
    assert alone == together
    assert one.state.tobytes() == many.state.tobytes()
    assert one.n_learned == many.n_learned == n


def test_weights_of_subsampled_negatives_leave_the_expected_gradient_as_it_is() -> None:
    # With so large an l1 every weight stays 0, and z is the sum of the gradients: its mean over many draws of which
    # negatives are kept must be the gradient of all rows.
    rng = np.random.default_rng(4)
    n, r, draws = 200, 0.2, 4000
    slots, values = np.zeros((n, 1), np.uint32), rng.normal(size=(n, 1))
    labels = (np.arange(n) % 20 == 0).astype(float)
    rates = Rates(l1=1e9)
    full = Ftrl(bits=1, rates=rates)
    full.learn_many(slots, values, labels)
    found = []
    for _ in range(draws):
        kept = (labels == 1) | (rng.random(n) < r)
        model = Ftrl(bits=1, rates=rates)
        model.learn_many(slots[kept], values[kept], labels[kept], weights=np.where(labels[kept] == 1, 1.0, 1 / r))
        found.append(model.state[0, 0])
    error = np.std(found) / math.sqrt(draws)
    assert abs(np.mean(found) - full.state[0, 0]) < 4 * error


def test_uncertainty_bounds_the_next_step() -> None:
    slots, values, labels = draw(600, seed=5)
    model = Ftrl(bits=BITS, rates=Rates(alpha=0.3))
    first = model.uncertainty(slots[:1], values[:1])[0]
    assert first == pytest.approx(0.3 * (values[0] ** 2).sum())
    for i in range(600):
        row = slots[i : i + 1], values[i : i + 1]
        bound = model.uncertainty(*row)[0]
        before = (model.weights()[row[0]] * row[1]).sum()
        model.learn_many(*row, labels[i : i + 1])
        after = (model.weights()[row[0]] * row[1]).sum()
        assert abs(after - before) <= bound * (1 + 1e-9)
    assert model.uncertainty(slots[:1], values[:1])[0] < first


def test_a_corrected_label_leaves_the_gradient_of_the_right_one() -> None:
    slots, values = np.array([[1, 2]], np.uint32), np.array([[1.0, -2.0]])
    rates = Rates(alpha=0.5, l1=0.1)
    wrong, right = Ftrl(bits=2, rates=rates), Ftrl(bits=2, rates=rates)
    wrong.learn_many(slots, values, [0.0], weights=[3.0])
    right.learn_many(slots, values, [1.0], weights=[3.0])
    wrong.correct(slots, values, [3.0 * (0.0 - 1.0)])
    # From weights of 0 and a prediction of one half the steps are equally large, so that all of the state is equal.
    assert np.allclose(wrong.state, right.state, rtol=1e-12)


@pytest.mark.parametrize("memory", [0.0, 0.25, 1.0])
def test_forgetting_keeps_the_weights(memory: float) -> None:
    slots, values, labels = draw(500, seed=6)
    model = Ftrl(bits=BITS, rates=Rates(alpha=0.2, l1=0.5, l2=0.1))
    model.learn_many(slots, values, labels)
    weights, n = model.weights(), model.state[:, 1].copy()
    model.forget(memory)
    assert np.abs(model.weights() - weights).max() < 1e-14
    assert model.state[:, 1].tolist() == (n * memory).tolist()
    assert model.n_weights == np.count_nonzero(weights) > 0


def test_weights_can_be_put() -> None:
    model = Ftrl(bits=3, rates=Rates(l1=1.0, l2=0.5))
    model.put_weights([1, 5], [0.75, -2.0])
    assert model.weights() == pytest.approx([0, 0.75, 0, 0, 0, -2.0, 0, 0], abs=1e-15)
    model.put_weights([5], [0.0])
    assert model.weights()[5] == 0
    with pytest.raises(InvalidInput, match="slots"):
        model.put_weights([8], [1.0])


BAD = [
    (np.array([[64]]), np.ones((1, 1)), [1.0], None),
    (np.array([[-1]]), np.ones((1, 1)), [1.0], None),
    (np.array([[1.5]]), np.ones((1, 1)), [1.0], None),
    (np.array([[2**40]]), np.ones((1, 1)), [1.0], None),
    (np.array([[1]]), np.array([[math.nan]]), [1.0], None),
    (np.array([[1]]), np.array([[math.inf]]), [1.0], None),
    (np.array([[1]]), np.ones((1, 2)), [1.0], None),
    (np.array([1]), np.ones(1), [1.0], None),
    (np.array([[1]]), np.ones((1, 1)), [0.5], None),
    (np.array([[1]]), np.ones((1, 1)), [math.nan], None),
    (np.array([[1]]), np.ones((1, 1)), [1.0, 0.0], None),
    (np.array([[1]]), np.ones((1, 1)), [1.0], [-1.0]),
    (np.array([[1]]), np.ones((1, 1)), [1.0], [math.inf]),
]


@pytest.mark.parametrize(("slots", "values", "labels", "weights"), BAD)
def test_what_breaks_a_rule_teaches_nothing(slots: Any, values: Any, labels: Any, weights: Any) -> None:
    model = Ftrl(bits=6)
    with pytest.raises(InvalidInput):
        model.learn_many(slots, values, labels, weights=weights)
    weight = 1.0 if weights is None else weights[0]
    if len(labels) == 1:
        with pytest.raises(InvalidInput):
            model.learn_one(slots[0], np.atleast_1d(values[0]), labels[0], weight=weight)
    assert not model.state.any()
    assert model.n_learned == 0


def test_one_row_may_come_in_other_types() -> None:
    one, other = Ftrl(bits=4), Ftrl(bits=4)
    one.learn_one(np.array([1, 2], np.uint32), np.array([1.0, 2.0]), 1)
    other.learn_one(np.array([1, 2]), np.array([1, 2]), 1)
    assert one.state.tobytes() == other.state.tobytes()


def test_no_rows_and_many_features() -> None:
    model = Ftrl(bits=12)
    assert model.learn_many(np.empty((0, 3), np.uint32), np.empty((0, 3)), []).tolist() == []
    assert model.predict(np.empty((2, 0), np.uint32), np.empty((2, 0))).tolist() == [0.5, 0.5]
    slots = np.arange(1000, dtype=np.uint32)
    assert model.learn_one(slots, np.ones(1000), 0) == 0.5
    assert model.learn_many(slots[None], np.ones((1, 1000)), [0.0])[0] < 0.5


def test_an_extreme_margin_stays_a_probability() -> None:
    model = Ftrl(bits=2)
    model.put_weights([0], [1e6])
    p = model.learn_many(np.zeros((2, 1), np.uint32), np.array([[1.0], [-1.0]]), [0.0, 1.0])
    assert p[0] == 1.0
    assert 0 <= p[1] < 1e-100
    assert np.isfinite(model.state).all()


@pytest.mark.parametrize(
    "wrong", [{"alpha": 0.0}, {"alpha": math.nan}, {"l1": -1.0}, {"l2": math.inf}, {"beta": 0.0}, {"beta": -1.0}]
)
def test_rates_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        Rates(**wrong)


@pytest.mark.parametrize("bits", [0, 29])
def test_bits_are_checked(bits: int) -> None:
    with pytest.raises(InvalidInput, match="bits"):
        Ftrl(bits=bits)


def test_numbers_whose_squares_are_none_are_refused_and_poison_nothing() -> None:
    model = Ftrl(bits=4, rates=Rates(alpha=0.1))
    slots = np.array([[1, 2]], np.uint32)
    for values, weight in (([[1e200, 1.0]], 1.0), ([[1.0, 1.0]], 1e200)):
        with pytest.raises(InvalidInput):
            model.learn_many(slots, np.array(values), [1.0], weights=[weight])
        with pytest.raises(InvalidInput):
            model.learn_one(slots[0], np.array(values[0]), 1.0, weight=weight)
    for _ in range(3):
        model.learn_many(slots, np.full((1, 2), 1e75), [1.0], weights=[1e75])
        model.learn_many(slots, np.full((1, 2), -1e75), [1.0], weights=[1e75])
    assert np.isfinite(model.state).all()
    assert np.isfinite(model.predict(slots, np.ones((1, 2)))).all()
