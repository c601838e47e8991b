"""What is the same for the trees of every library: shapes, files, damage, and the kernels against plain Python.

Oracle of the walk: the same trees walked node by node in Python, added with `math`'s and NumPy's arithmetic.
"""

import dataclasses
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models.forest_rows import equal

from vitok.errors import InvalidInput, StoreError
from vitok.models import forest_kernels as kernels
from vitok.models.forest import _HEAD, Forest
from vitok.models.forest_layout import CategorySplit, Grove

N_FEATURES = 5


def random_tree(rng, depth, grove, *, categories=False):
    """Grows a tree that splits about half of its nodes; returns what `Grove.add` takes."""
    left, right, column, threshold, value, splits = [], [], [], [], [], {}

    def grow(level):
        node = len(left)
        for part in (left, right):
            part.append(-1)
        column.append(0)
        threshold.append(0.0)
        value.append(float(np.round(rng.normal(), 3)))
        if level == 0 or rng.random() < 0.25:
            return node
        feature = int(rng.integers(0, N_FEATURES))
        if categories and rng.random() < 0.5:
            column[node] = grove.column(feature, kernels.CATEGORY_CUT)
            members = frozenset(float(member) for member in rng.integers(0, 90, 6))
            flags = [bool(flag) for flag in rng.integers(0, 2, 3)]
            splits[node] = CategorySplit(
                members=members, members_right=flags[0], unseen_right=flags[1], missing_right=flags[2]
            )
        else:
            column[node] = grove.column(feature, int(rng.integers(0, 5)))
            threshold[node] = float(rng.choice([0.0, -1.0, 1.0, 0.5, np.inf, -np.inf, 1e-40]))
        left[node] = grow(level - 1)
        right[node] = grow(level - 1)
        return node

    grow(depth)
    return {"left": left, "right": right, "column": column, "threshold": threshold, "value": value, "splits": splits}


def walk(tree, reading, row, known):
    node = 0
    while tree["left"][node] >= 0:
        feature, kind = reading[tree["column"][node]]
        x = row[feature]
        split = tree["splits"].get(node)
        if split is not None:
            if np.isnan(x):
                right = split.missing_right
            else:
                cut = float(np.trunc(x)) if abs(x) < 2**31 else np.inf
                right = split.unseen_right
                if cut in known[tree["column"][node]]:
                    right = (cut in split.members) == split.members_right
        else:
            tiny = abs(x) <= float(np.float32(1e-35))
            if kind == kernels.NAN_IS_ZERO and np.isnan(x):
                x = 0.0
            if np.isnan(x) or (tiny and kind in (kernels.ZERO_RIGHT, kernels.ZERO_LEFT)):
                right = kind in (kernels.AS_IS, kernels.ZERO_RIGHT)
            else:
                right = x > tree["threshold"][node]
        node = tree["right" if right else "left"][node]
    return tree["value"][node]


@given(
    seed=st.integers(0, 2**32 - 1),
    n_trees=st.integers(0, 40),
    depth=st.integers(0, 7),
    n_outputs=st.integers(1, 3),
    categories=st.booleans(),
)
def test_the_kernels_walk_as_python_does(seed, n_trees, depth, n_outputs, categories) -> None:
    rng = np.random.default_rng(seed)
    grove = Grove(n_features=N_FEATURES, n_outputs=n_outputs)
    trees = [random_tree(rng, depth, grove, categories=categories) for _ in range(n_trees)]
    for i, tree in enumerate(trees):
        grove.add(**tree, output=i % n_outputs)
    start = [0.25] * n_outputs
    forest = Forest._build("test", (), dataclasses.asdict(grove.arrays(link=kernels.IDENTITY, start=start)))
    reading = {column: key for key, column in grove._columns.items()}
    known: dict[int, set[float]] = {}
    for tree in trees:
        for node, split in tree["splits"].items():
            known.setdefault(tree["column"][node], set()).update(split.members)
    odd = [np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, 1e-35, -1e-35, 2e-35, 1.0, -1.0, 0.5, -0.5, 1e10, 3.7]
    X = np.where(rng.random((12, N_FEATURES)) < 0.5, rng.choice(odd, (12, N_FEATURES)), rng.integers(-2, 95, (12, 5)))
    expected = np.full((12, n_outputs), 0.25)
    for row, sums in zip(X, expected, strict=True):
        for i, tree in enumerate(trees):
            sums[i % n_outputs] += walk(tree, reading, row, known)
    assert equal(forest.raw(X), expected[:, 0] if n_outputs == 1 else expected)


def small(n_outputs=1, **settings):
    grove = Grove(n_features=3, n_outputs=n_outputs)
    rng = np.random.default_rng(0)
    for i in range(9):
        column = grove.column(int(rng.integers(0, 3)), kernels.NAN_LEFT)
        value = rng.normal(size=3)
        grove.add(
            left=[1, -1, -1], right=[2, -1, -1], column=[column] * 3, threshold=[0.1 * i] * 3, value=value,
            output=i % n_outputs,
        )  # fmt: skip
    chosen = {"link": kernels.SIGMOID if n_outputs == 1 else kernels.SOFTMAX, **settings}
    return Forest._build("test", ("a", "b", "c"), dataclasses.asdict(grove.arrays(**chosen)))


def test_it_says_what_it_is() -> None:
    forest = small(3)
    assert (forest.n_features, forest.n_outputs, forest.n_trees, forest.link) == (3, 3, 9, "softmax")
    assert forest.feature_names == ("a", "b", "c")
    assert forest.input_dtype == np.float64
    assert repr(forest) == "Forest(test, 9 trees, 3 features, 3 outputs, softmax)"
    assert forest.nbytes > 0
    assert forest.warm() is forest
    assert Forest.of(forest) is forest


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_shapes(n_outputs) -> None:
    forest = small(n_outputs)
    X = np.random.default_rng(1).normal(size=(7, 3))
    whole = forest.predict(X)
    assert whole.shape == ((7,) if n_outputs == 1 else (7, 3))
    for n in (0, 1, 6):
        assert equal(forest.predict(X[:n]), whole[:n])
    for same in (np.asfortranarray(X), X.tolist(), np.repeat(X, 2, axis=1)[:, ::2], X[::-1][::-1]):
        assert equal(forest.predict(same), whole)
    frozen = X.copy()
    frozen.flags.writeable = False
    assert equal(forest.predict(frozen), whole)
    counts = np.arange(6).reshape(2, 3)
    for dtype in (np.int8, np.int64, np.uint32, bool, np.float32, np.float16, ">f8"):
        assert equal(forest.predict((counts % 2).astype(dtype)), forest.predict((counts % 2).astype(float)))
    out = np.full_like(whole, 9.0)
    assert forest.predict(X, out=out) is out
    assert equal(out, whole)
    if n_outputs == 3:
        assert np.allclose(whole.sum(axis=1), 1.0)
    else:
        assert equal(whole, 1 / (1 + np.exp(-forest.raw(X)))) or np.allclose(whole, 1 / (1 + np.exp(-forest.raw(X))))


@pytest.mark.parametrize(
    ("X", "match"),
    [
        (np.zeros((2, 2)), r"\(n, 3\)"),
        (np.zeros((2, 4)), r"\(n, 3\)"),
        (np.zeros(3), r"\(n, 3\)"),
        (np.zeros((1, 1, 3)), r"\(n, 3\)"),
        (0.0, r"\(n, 3\)"),
        ([["a", "b", "c"]], "numbers"),
        (np.zeros((1, 3), dtype=object), "numbers"),
        (np.zeros((1, 3), dtype=complex), "numbers"),
        (np.zeros((1, 3), dtype="M8[s]"), "numbers"),
        ([[1.0, 2.0, 3.0], [1.0]], "numbers"),
        (None, "numbers"),
    ],
)
def test_rows_that_are_none(X, match) -> None:
    with pytest.raises(InvalidInput, match=match):
        small().predict(X)


def test_out_that_cannot_be_written() -> None:
    frozen = np.zeros(2)
    frozen.flags.writeable = False
    for out in (np.zeros(3), np.zeros((2, 1)), np.zeros(2, dtype=np.float32), np.zeros(4)[::2], frozen, [0.0, 0.0]):
        with pytest.raises(InvalidInput, match="out"):
            small().predict(np.zeros((2, 3)), out=out)


def test_threads_score_at_once() -> None:
    forest = small()
    X = np.random.default_rng(2).normal(size=(2000, 3))
    expected, found = forest.predict(X), {}

    def score(i: int) -> None:
        found[i] = all(equal(forest.predict(X), expected) for _ in range(20))

    threads = [threading.Thread(target=score, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_a_file_holds_the_same_trees(tmp_path, n_outputs) -> None:
    forest = small(n_outputs, slope=1.7)
    forest.save(tmp_path / "a.forest")
    X = np.random.default_rng(3).normal(size=(50, 3))
    for read in (Forest.load(tmp_path / "a.forest"), Forest.of(str(tmp_path / "a.forest"))):
        assert equal(read.predict(X), forest.predict(X))
        assert (read.library, read.feature_names, read.link) == ("test", ("a", "b", "c"), forest.link)
        assert not read.nodes.flags.writeable
        assert read.nodes.ctypes.data % 64 == 0
        assert read.nodes.base is not None
    Forest.load(tmp_path / "a.forest").save(tmp_path / "b.forest")
    assert (tmp_path / "a.forest").read_bytes() == (tmp_path / "b.forest").read_bytes()
    assert equal(pickle.loads(pickle.dumps(forest)).predict(X), forest.predict(X))
    kept = Forest.load(tmp_path / "a.forest")
    small(1).save(tmp_path / "a.forest")  # in place of a file that is mapped
    assert equal(kept.predict(X), forest.predict(X))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.forest", "b.forest"]


def test_a_damaged_file_is_refused(tmp_path) -> None:
    path = tmp_path / "a.forest"
    small().save(path)
    content = path.read_bytes()
    rng = np.random.default_rng(4)
    for cut in (0, 1, 7, 8, _HEAD - 1, _HEAD, *rng.integers(0, len(content) - 1, 40).tolist()):
        path.write_bytes(content[:cut])
        with pytest.raises(StoreError):
            Forest.load(path)
    for at in (*range(_HEAD), *rng.integers(0, len(content), 100).tolist()):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        with pytest.raises(StoreError):
            Forest.load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(StoreError, match="damaged"):
        Forest.load(path)


def test_a_file_of_another_kind(tmp_path) -> None:
    path = tmp_path / "model"
    for content in (
        b"",
        b"PK\x03\x04" + b"\0" * 200,
        b"\x80\x04\x95" + b"\0" * 200,
        b"[1, 2]",
        b"{}",
        b'{"a": 1}',
        b"{",
    ):
        path.write_bytes(content)
        with pytest.raises(StoreError):
            Forest.load(path)
        with pytest.raises(InvalidInput):
            Forest.of(path)
    for missing in (tmp_path / "nothing", tmp_path):
        with pytest.raises(StoreError, match="cannot be read"):
            Forest.load(missing)
        with pytest.raises(StoreError, match="cannot be read"):
            Forest.of(missing)
    with pytest.raises(StoreError, match="cannot be written"):
        small().save(tmp_path / "nowhere" / "a.forest")
    for other in (None, 3, object(), [1], {"tree_info": []}, {"learner": {}}, {"features_info": {}}):
        with pytest.raises(InvalidInput):
            Forest.of(other)


def packed(forest, **changed):
    """The file of a forest with other arrays, checksum and all."""
    return dataclasses.replace(forest, **changed).to_bytes()


def test_a_file_of_arrays_that_do_not_fit_together_is_refused(tmp_path) -> None:
    forest = small()
    path = tmp_path / "a.forest"

    def changed(name, place, value, field=None):
        array = getattr(forest, name).copy()
        if field:
            array[field][place] = value
        else:
            array[place] = value
        return {name: array}

    for change in (
        changed("nodes", 0, len(forest.nodes), "child"),
        changed("nodes", 2, 0, "child"),
        changed("nodes", 0, 99, "column"),
        changed("columns", 0, 3, "feature"),
        changed("plan", kernels.N_TREES, 10**6),
        changed("plan", kernels.N_OUTPUTS, 2),
        changed("plan", kernels.N_OUTPUTS, 0),
        changed("plan", kernels.LANE_START, 10**6),
        changed("plan", kernels.LANE_TREE + 3, 10**6),
        changed("plan", kernels.TREE_OUTPUT, 1),
        changed("plan", -1, 0),
        {"values": forest.values[:-1]},
        {"numbers": forest.numbers[:3]},
        {"plan": forest.plan[:5]},
        {"nodes": forest.nodes[:0]},
    ):
        path.write_bytes(packed(forest, **change))
        with pytest.raises(StoreError, match="do not fit"):
            Forest.load(path)


def test_a_later_version_is_refused(tmp_path) -> None:
    content = small().to_bytes()
    path = tmp_path / "a.forest"
    path.write_bytes(content[:8] + (9).to_bytes(4, "little") + content[12:])
    with pytest.raises(StoreError, match="version 9"):
        Forest.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"left": [1, -1], "right": [2, -1]},
        {"left": [0, -1, -1]},
        {"left": [3, -1, -1]},
        {"left": [2, -1, -1]},
        {"right": [-1, -1, -1]},
        {"left": [], "right": [], "column": [], "threshold": [], "value": []},
        {"threshold": [np.nan, 0.0, 0.0]},
        {"value": [[1.0], [2.0], [3.0]]},
        {"output": 1},
    ],
)
def test_what_is_no_tree(change) -> None:
    grove = Grove(n_features=1)
    whole = {"left": [1, -1, -1], "right": [2, -1, -1], "column": [0] * 3, "threshold": [0.0] * 3, "value": [1.0] * 3}
    with pytest.raises(InvalidInput, match="tree 0"):
        grove.add(**{**whole, **change})
    with pytest.raises(InvalidInput, match="feature"):
        grove.column(1, kernels.AS_IS)
    with pytest.raises(InvalidInput, match="at least one feature"):
        Grove(n_features=0)
