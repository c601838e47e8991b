"""Oracles: the libraries' own predictions on held-out rows, and the serving runtime, which reads what is written."""

import json
import warnings
from typing import Any

import numpy as np
import pytest

from vitok.errors import GateRefused, InvalidInput, MissingExtra
from vitok.models import fit_boosted_trees
from vitok.models.comparison import compare
from vitok.models.convert import Converted, convert
from vitok.models.convert_sources import columns_of, read_source
from vitok.serving.runtime import Runtime

NAMES = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    X = rng.normal(size=(600, 4))
    return X, (X[:, 0] + X[:, 1] * X[:, 2] + rng.normal(scale=0.5, size=600) > 0).astype(int)


def served(tmp_path: Any, converted: Converted, X: np.ndarray) -> np.ndarray:
    for name, content in converted.files().items():
        raw = content if isinstance(content, bytes) else json.dumps(content, allow_nan=False).encode()
        (tmp_path / name).write_bytes(raw)
    runtime = Runtime.load(tmp_path, tolerance=1e-9)
    return runtime.score(X.astype(runtime.dtype))


@pytest.mark.parametrize("kind", ["RandomForestClassifier", "GradientBoostingClassifier", "DecisionTreeRegressor"])
def test_trees_of_sklearn_become_a_forest(kind: str, data: Any, tmp_path: Any) -> None:
    import sklearn.ensemble
    import sklearn.tree

    X, y = data
    made = getattr(sklearn.ensemble, kind, None) or getattr(sklearn.tree, kind)
    model = made(random_state=0, max_depth=4).fit(X[:300], y[:300])
    converted = convert(model, X[300:], names=NAMES)
    assert (converted.engine, converted.dtype) == ("forest", np.float32)
    assert converted.comparison.max_difference <= 1e-15
    own = model.predict_proba(X)[:, 1] if hasattr(model, "predict_proba") else model.predict(X)
    assert np.abs(served(tmp_path, converted, X) - own).max() <= 1e-15
    assert "forest" in str(converted)


def test_lightgbm_is_equal_in_every_bit_also_where_values_miss(data: Any, tmp_path: Any) -> None:
    import lightgbm

    X, y = data
    X = X.copy()
    X[::7, 1] = np.nan
    model = lightgbm.LGBMClassifier(n_estimators=20, verbose=-1, n_jobs=1).fit(X[:300], y[:300])
    converted = convert(model, X[300:], names=NAMES)
    assert converted.comparison.exact
    assert converted.raw_equal
    assert converted.bound <= 1e-12
    assert None in [value for row in converted.files()["examples.json"]["inputs"] for value in row]
    assert np.array_equal(served(tmp_path, converted, X), model.booster_.predict(X))
    text = str(converted)
    assert "equal in every bit on 300 rows" in text
    assert "before the link: equal in every bit" in text
    regressor = lightgbm.LGBMRegressor(n_estimators=5, verbose=-1, n_jobs=1).fit(X[:300], 1e6 * X[:300, 0])
    assert convert(regressor.booster_, X, names=NAMES).comparison.exact
    assert not convert(regressor, X).probability


def test_boosted_trees_go_both_ways(data: Any, tmp_path: Any) -> None:
    X, y = data
    trees = fit_boosted_trees(X, y, names=NAMES, n_trees=20)
    forest = convert(trees, X)
    assert forest.names == tuple(NAMES)
    assert forest.comparison.exact
    assert forest.dtype == np.float32
    onnx = convert(trees, X, engine="onnx")
    assert onnx.engine == "onnx"
    assert onnx.comparison.max_difference < 1e-6
    assert np.abs(served(tmp_path, onnx, X) - trees.score(X)).max() < 1e-6


def test_several_classes(data: Any, tmp_path: Any) -> None:
    import lightgbm
    from sklearn.linear_model import LogisticRegression

    X, _ = data
    y = np.digitize(X[:, 0], [-0.5, 0.5])
    trees = lightgbm.LGBMClassifier(n_estimators=4, verbose=-1, n_jobs=1).fit(X, y)
    converted = convert(trees, X)
    assert converted.comparison.exact
    assert converted.comparison.flips[0].threshold is None
    assert np.array_equal(served(tmp_path, converted, X), trees.predict_proba(X)[:, 2])
    assert convert(LogisticRegression().fit(X, y), X).comparison.flip_share == 0


def pipeline(X: np.ndarray, y: np.ndarray) -> Any:
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        last = MLPClassifier((8,), max_iter=30, random_state=0)
        return make_pipeline(StandardScaler(), last).fit(X, y)


def test_a_pipeline_becomes_onnx_in_32_bits_and_in_64_where_that_is_asked(data: Any, tmp_path: Any) -> None:
    X, y = data
    model = pipeline(X[:300], y[:300])
    converted = convert(model, X[300:], names=NAMES)
    assert (converted.engine, converted.dtype) == ("onnx", np.float32)
    assert 0 < converted.comparison.max_difference < 1e-5
    assert np.abs(served(tmp_path, converted, X) - model.predict_proba(X)[:, 1]).max() < 1e-5
    assert any("Take the last step out" in note for note in converted.notes)
    exact = convert(model, X[300:], names=NAMES, dtype=np.float64)
    assert exact.comparison.max_difference < 1e-12
    # A bound that 32 bits do not hold takes 64.
    tight = convert(model, X[300:], names=NAMES, max_difference=1e-11)
    assert tight.dtype == np.float64
    assert any("onnx in float32: scores differ" in note for note in tight.notes)


def test_what_onnx_runtime_lacks_in_64_bits_stays_in_32(data: Any) -> None:
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    X, y = data
    X = np.where(np.arange(len(X))[:, None] % 9 == 0, np.nan, X)
    model = make_pipeline(SimpleImputer(), LogisticRegression()).fit(X, y)
    converted = convert(model, X)
    assert converted.dtype == np.float32
    assert None in [value for row in converted.examples["inputs"] for value in row]
    with pytest.raises(InvalidInput, match="NOT_IMPLEMENTED"):
        convert(model, X, dtype=np.float64)


def test_what_differs_by_more_than_the_bound_is_refused_with_the_report(data: Any) -> None:
    X, y = data
    model = pipeline(X, y)
    with pytest.raises(GateRefused, match=r"differ by at most .* allowed 1e-11"):
        convert(model, X, dtype=np.float32, max_difference=1e-11)
    # A threshold that lies on a score: 32 bits put some rows on the other side.
    scores = model.predict_proba(X)[:, 1]
    low = convert(model, X, dtype=np.float32)
    theirs = compare_scores(low, X)
    row = int(np.argmax(np.abs(scores - theirs)))
    exact_at = float((scores[row] + theirs[row]) / 2)
    with pytest.raises(GateRefused, match="1 decisions flipped"):
        convert(model, X, dtype=np.float32, thresholds=[exact_at])
    allowed = convert(model, X, dtype=np.float32, thresholds=[exact_at], max_flip_share=0.01)
    assert allowed.comparison.flips[0].count == 1
    assert convert(model, X, thresholds=[exact_at]).dtype == np.float64


def compare_scores(converted: Converted, X: np.ndarray) -> np.ndarray:
    from vitok.models.onnx_scoring import OnnxScorer

    return OnnxScorer(converted.content).score(X)


def test_columns_of_a_frame_keep_their_kinds(tmp_path: Any) -> None:
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"amount": rng.normal(size=300), "country": rng.choice(["de", "at", "fr"], 300)})
    y = (frame["amount"] + (frame["country"] == "de") > 0.3).to_numpy()
    encode = ColumnTransformer(
        [("n", StandardScaler(), ["amount"]), ("c", OneHotEncoder(handle_unknown="ignore"), ["country"])]
    )
    model = make_pipeline(encode, LogisticRegression()).fit(frame[:200], y[:200])
    converted = convert(model, frame[200:])
    assert converted.names == ("amount", "country")
    assert converted.comparison.max_difference < 1e-6
    for name, content in converted.files().items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    runtime = Runtime.load(tmp_path)
    assert [spec.name for spec in runtime.inputs] == ["amount", "country"]
    with pytest.raises(InvalidInput, match="none missing"):
        convert(model, {"amount": np.zeros(1), "country": np.array([None])})


def test_a_tree_behind_a_scaler(data: Any) -> None:
    import lightgbm
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y = data
    last = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = make_pipeline(StandardScaler(), last).fit(X, y)
        converted = convert(model, X, max_difference=1e-3, max_flip_share=0.1)
    assert converted.engine == "onnx"


def test_inputs_that_cannot_be(data: Any) -> None:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.svm import LinearSVC

    X, y = data
    model = RandomForestClassifier(3, random_state=0).fit(X, y)
    with pytest.raises(InvalidInput, match="at least one row"):
        convert(model, X[:0])
    with pytest.raises(InvalidInput, match="name the 4 columns"):
        convert(model, X, names=["a"])
    with pytest.raises(InvalidInput, match="once"):
        convert(model, X, names=["a", "a", "b", "c"])
    with pytest.raises(InvalidInput, match="engine"):
        convert(model, X, engine="treelite")
    with pytest.raises(InvalidInput, match="be at least 0"):
        convert(model, X, max_difference=-1)
    with pytest.raises(InvalidInput, match="be fitted"):
        convert(RandomForestClassifier(), X)
    with pytest.raises(InvalidInput, match="predict_proba"):
        convert(LinearSVC().fit(X, y), X)
    with pytest.raises(InvalidInput, match="LightGBM, XGBoost"):
        convert(object(), X)
    with pytest.raises(InvalidInput, match="identity"):
        convert(model, X, link="sigmoid")
    with pytest.raises(InvalidInput, match="link"):
        convert(model, X, link="probit")
    with pytest.raises(InvalidInput, match="matrix of numbers"):
        convert(model, X[0])
    with pytest.raises(InvalidInput, match="be float32 or float64"):
        convert(model, X, engine="onnx", dtype=np.float16)
    trees = fit_boosted_trees(X, y, names=NAMES, n_trees=2)
    with pytest.raises(InvalidInput, match="in the order of the model"):
        convert(trees, X, names=["b", "a", "c", "d"])
    assert convert(model, X[:1]).comparison.n_rows == 1
    assert convert(model, X.astype(int)).comparison.exact


def test_examples_leave_out_what_json_cannot_hold(data: Any) -> None:
    import lightgbm

    X, y = data
    model = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1).fit(X, y)
    odd = X[:10].copy()
    odd[0, 0], odd[1, 1] = np.inf, np.nan
    examples = convert(model, odd, n_examples=5).examples
    assert len(examples["inputs"]) == len(examples["outputs"]) == 5
    assert examples["inputs"][0][1] is None
    assert convert(model, np.full((2, 4), np.inf)).examples == {"inputs": [], "outputs": []}


def test_compare_counts_nan_and_classes() -> None:
    assert compare([np.nan, 1.0], [np.nan, 1.0]).exact
    broken = compare([np.nan, 1.0], [0.0, 1.0])
    assert broken.max_difference == np.inf
    assert broken.to_dict()["max_difference"] is None
    turned = compare([[0.6, 0.3, 0.1]], [[0.3, 0.6, 0.1]])
    assert turned.flip_share == 1.0
    assert compare([1.0], [2.0], thresholds=()).flip_share == 0.0
    with pytest.raises(InvalidInput, match="same shape"):
        compare([1.0], [1.0, 2.0])
    with pytest.raises(InvalidInput, match="one row"):
        compare([], [])


def test_frames_of_other_libraries() -> None:
    import polars as pl
    import pyarrow as pa

    for frame in (pl.DataFrame({"x": [1.0, 2.0]}), pa.table({"x": [1.0, 2.0]}), {"x": [1.0, 2.0]}):
        assert columns_of(frame)["x"].tolist() == [1.0, 2.0]  # type: ignore[index]


def test_without_torch_the_extra_is_named() -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        module = type("Net", (), {"__module__": "torch.nn"})()
        with pytest.raises(MissingExtra, match=r"vitok\[torch\]"):
            read_source(module)


@pytest.mark.parametrize("link", ["sigmoid", "softmax"])
def test_torch_modules(link: str, data: Any, tmp_path: Any) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed; make torch")
    X, _ = data
    torch.manual_seed(0)
    width = 1 if link == "sigmoid" else 3
    module = torch.nn.Sequential(
        torch.nn.Linear(4, 16), torch.nn.Dropout(0.5), torch.nn.ReLU(), torch.nn.Linear(16, width)
    )
    converted = convert(module, X, names=NAMES, link=link)
    assert (converted.engine, converted.probability) == ("onnx", True)
    assert converted.comparison.max_difference < 1e-6
    assert module.training
    module.eval()
    with torch.no_grad():
        logits = module(torch.tensor(X, dtype=torch.float32))
        own = torch.sigmoid(logits) if link == "sigmoid" else torch.softmax(logits, -1)
    assert np.abs(served(tmp_path, converted, X) - own[:, -1].numpy()).max() < 1e-6
    assert not convert(module, X).probability
    with pytest.raises(InvalidInput, match="written as ONNX"):
        convert(torch.nn.Sequential(torch.nn.Linear(4, 1), spectrum()), X)


def spectrum() -> Any:
    import torch

    class Spectrum(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.linalg.svdvals(x)

    return Spectrum()


@pytest.mark.parametrize("classes", [2, 3])
def test_xgboost(classes: int, data: Any, tmp_path: Any) -> None:
    xgboost = pytest.importorskip("xgboost", reason="xgboost is in no extra; pip install xgboost")
    X, _ = data
    y = np.digitize(X[:, 0], [-0.5, 0.5][: classes - 1])
    model = xgboost.XGBClassifier(n_estimators=8, n_jobs=1).fit(X, y)
    for form in (model, model.get_booster()):
        converted = convert(form, X, names=NAMES)
        assert converted.comparison.exact
        assert converted.raw_equal
        assert converted.probability
    assert np.array_equal(served(tmp_path, converted, X), model.predict_proba(X)[:, -1].astype(float))
    onnx = convert(model, X, engine="onnx", max_difference=1e-4, max_flip_share=0.01)
    assert onnx.engine == "onnx"


def test_catboost(data: Any, tmp_path: Any) -> None:
    catboost = pytest.importorskip("catboost", reason="catboost is in no extra; pip install catboost")
    X, y = data
    settings = {"iterations": 10, "verbose": False, "thread_count": 1, "allow_writing_files": False}
    model = catboost.CatBoostClassifier(**settings).fit(X, y)
    converted = convert(model, X, names=NAMES)
    assert converted.comparison.max_difference <= 1e-15
    assert converted.raw_equal
    assert np.abs(served(tmp_path, converted, X) - model.predict_proba(X)[:, 1]).max() <= 1e-15
    regressor = catboost.CatBoostRegressor(**settings).fit(X, X[:, 0])
    assert convert(regressor, X).comparison.exact
    with pytest.raises(InvalidInput, match="be 'forest'"):
        convert(model, X, engine="onnx")
