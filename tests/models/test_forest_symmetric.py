"""Symmetric trees by their own kernel. Oracle: the walk through the same arrays, and scikit-learn's own stumps."""

from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier, RandomForestRegressor
from sklearn.tree import DecisionTreeRegressor
from tests.models.forest_rows import equal

from vitok.models import forest_kernels as kernels
from vitok.models.forest import Forest
from vitok.models.forest_layout import Arrays, CategorySplit, Grove
from vitok.models.forest_symmetric import symmetric_parts
from vitok.models.forest_symmetric_kernels import BLOCK, FEW, score_symmetric

N_FEATURES = 5


def grown(depths: list[int], seed: int, *, k: int = 1, narrow: bool = False, refuses: int = 0) -> Arrays:
    """Symmetric trees of random splits; thresholds repeat, and some are infinite."""
    rng = np.random.default_rng(seed)
    grove = Grove(n_features=N_FEATURES, n_outputs=k, vector=k > 1, narrow=narrow, refuses=refuses)
    readings = (kernels.AS_IS, kernels.NAN_LEFT, kernels.NAN_IS_ZERO, kernels.ZERO_RIGHT, kernels.ZERO_LEFT)
    columns = [grove.column(feature, reading) for feature in range(N_FEATURES) for reading in readings]
    for depth in depths:
        asked = [(int(rng.choice(columns)), float(rng.choice(BORDERS))) for _ in range(depth)]
        inner = np.arange(2**depth - 1)
        level = np.floor(np.log2(inner + 1)).astype(int)
        leaf = np.full(2**depth, -1)
        value = np.concatenate((np.zeros((len(inner), k)), rng.normal(size=(2**depth, k))))
        grove.add(
            left=np.concatenate((2 * inner + 1, leaf)),
            right=np.concatenate((2 * inner + 2, leaf)),
            column=[asked[step][0] for step in level] + [0] * 2**depth,
            threshold=[asked[step][1] for step in level] + [0.0] * 2**depth,
            value=value if k > 1 else value[:, 0],
        )
    return grove.arrays(link=kernels.SIGMOID if k == 1 else kernels.SOFTMAX, start=[0.25] * k, divisor=3.0, scale=0.5)


BORDERS = np.concatenate((np.round(np.random.default_rng(1).normal(size=900), 3), [np.inf, -np.inf, 0.0]))


def rows(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    X = rng.choice(BORDERS, (n, N_FEATURES))
    X += rng.choice([0.0, 1e-3, 1e-9], X.shape)
    X[rng.random(X.shape) < 0.1] = np.nan
    X[rng.random(X.shape) < 0.1] = 0.0
    return np.ascontiguousarray(X)


def both(arrays: Arrays, X: np.ndarray, link: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores rows by the walk and by the kernel for symmetric trees."""
    for array in vars(arrays).values():
        array.flags.writeable = False
    parts = symmetric_parts(arrays)
    assert parts is not None
    walked, ours = (np.full(len(X) * int(arrays.plan[kernels.N_OUTPUTS]), 7.0) for _ in range(2))
    kernels.score(X, walked, link, *vars(arrays).values())
    score_symmetric(X, ours, link, *parts)
    return walked, ours


@pytest.mark.parametrize("n", [0, 1, FEW, FEW + 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
@pytest.mark.parametrize(
    ("depths", "options"),
    [
        ([6] * 20, {}),
        ([0, 1, 2, 7, 8, 9, 10, 0], {}),
        ([6] * 400, {"narrow": True}),
        ([3, 9, 1], {"k": 3}),
        ([4] * 7, {"refuses": kernels.NO_NAN}),
        ([4] * 7, {"refuses": kernels.NO_INFINITY | kernels.FLUSH, "k": 2}),
    ],
    ids=str,
)
def test_as_the_walk_does(n: int, depths: list[int], options: dict[str, Any]) -> None:
    arrays = grown(depths, n + len(depths), **options)
    for link in (kernels.RAW, int(arrays.plan[kernels.LINK])):
        walked, ours = both(arrays, rows(n, n), link)
        assert equal(ours, walked)


def test_more_borders_than_a_byte_counts() -> None:
    parts = symmetric_parts(grown([6] * 2000, 3))
    assert parts is not None
    bins = parts[6]
    assert (bins["end"] - bins["first"]).max() == 255
    assert len(np.unique(bins["column"])) < len(bins)


def test_stumps_of_any_library() -> None:
    rng = np.random.default_rng(4)
    X = rng.normal(size=(700, 3)).astype(np.float32).astype(float)
    y = X[:, 0] + X[:, 1] > 0
    stumps = GradientBoostingClassifier(n_estimators=30, max_depth=1, random_state=0).fit(X, y)
    forest = Forest.of(stumps)
    assert forest.symmetric
    assert equal(forest.raw(X), stumps.decision_function(X))
    # A row that scikit-learn refuses scores NaN, and the others of its block are scored.
    X[5, 1] = np.inf
    found = forest.raw(X)
    assert np.flatnonzero(np.isnan(found)).tolist() == [5]
    assert equal(np.delete(found, 5), stumps.decision_function(np.delete(X, 5, axis=0)))


def test_what_is_not_symmetric() -> None:
    rng = np.random.default_rng(5)
    X, y = rng.normal(size=(500, 4)), rng.normal(size=500)
    assert not Forest.of(RandomForestRegressor(5, random_state=0).fit(X, y)).symmetric
    # Complete, but with other questions on one level.
    assert not Forest.of(DecisionTreeRegressor(max_depth=2).fit(X, y)).symmetric
    assert not Forest.of(DecisionTreeRegressor(max_depth=3, max_leaf_nodes=3).fit(X, y)).symmetric
    grove = Grove(n_features=1)
    split = CategorySplit(members=frozenset({1.0}), members_right=True, unseen_right=False, missing_right=False)
    column = grove.column(0, kernels.CATEGORY_CUT)
    parts = {"left": [1, -1, -1], "right": [2, -1, -1], "column": [column, 0, 0], "threshold": [0.0] * 3}
    grove.add(**parts, value=[0.0, 1.0, 2.0], splits={0: split})
    assert symmetric_parts(grove.arrays(link=kernels.IDENTITY)) is None
    assert symmetric_parts(Grove(n_features=1).arrays(link=kernels.IDENTITY)) is None


def test_a_forest_on_disk_is_found_symmetric_again(tmp_path: Any) -> None:
    X = np.random.default_rng(6).normal(size=(300, 2))
    forest = Forest.of(GradientBoostingClassifier(n_estimators=5, max_depth=1).fit(X, X[:, 0] > 0))
    forest.save(tmp_path / "stumps.forest")
    again = Forest.load(tmp_path / "stumps.forest")
    assert again.symmetric
    assert equal(again.predict(X), forest.predict(X))
