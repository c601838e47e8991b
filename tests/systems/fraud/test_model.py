"""Packages: what training writes loads and scores as the trees do, older ones load too, and wrong ones are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitok.errors import Conflict, ServiceError
from vitok.models import BoostedTrees
from vitok.monitoring import ReferenceProfile
from vitok.registry import Package, Registry, fast_enough, write_package
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.gate import MODEL_US
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.model import NEEDED, LoadedModel


@pytest.fixture
def package(template: Path) -> Package:
    registry = Registry(template)
    found = registry.load(SYSTEM, 1)
    registry.close()
    return found


def changed(package: Package, folder: Path, *, without: tuple[str, ...] = (), **files: Any) -> Package:
    contents: dict[str, Any] = {name: package.bytes(name) for name in package.files if name not in without}
    return write_package(folder / "changed", name=SYSTEM, version=1, created=0, files=contents | files)


def load(package: Package) -> LoadedModel:
    return LoadedModel.load(package, "fraud/9", "Staging", FEATURES)


def test_a_package_carries_what_a_server_needs(package: Package, world: Any) -> None:
    assert set(package.files) == {
        *("model.forest", "model.txt", "signature.json", "examples.json", "conversion.json", "features.json"),
        *("calibrator.json", "policy.json", "profile.json", "metrics.json", "latency.json"),
        *("importance.json", "estimator.json", "conformal.json", "learned.json"),
    }
    signature = package.json("signature.json")
    assert signature["inputs"] == list(FEATURES.names)
    assert (signature["engine"], signature["output"]) == ("forest", "probability")
    assert package.json("conversion.json")["raw_equal"]
    assert len(package.json("examples.json")["outputs"]) == 64
    latency = package.json("latency.json")
    assert set(latency["microseconds"]) == {"1", "16", "256"}
    assert fast_enough(latency["answers_us"], bound_us=MODEL_US).passed
    assert ReferenceProfile.from_dict(package.json("profile.json")).names == FEATURES.names
    # Oracle: LightGBM itself.
    trees = BoostedTrees(package.text("model.txt"), FEATURES.names, 0)
    values = world.rows.head(500).select(FEATURES.names).to_numpy()
    score, probability = load(package).answer(values)
    np.testing.assert_allclose(score, trees.score(values.astype(np.float32)), atol=1e-12, rtol=0)
    assert ((probability >= 0) & (probability <= 1)).all()


def test_a_package_from_before_loads_and_decides_alike(package: Package, world: Any, tmp_path: Path) -> None:
    onnx = BoostedTrees(package.text("model.txt"), FEATURES.names, 0).to_onnx()
    signature = {"inputs": list(FEATURES.names), "dtype": "float32", "output": "probability of fraud"}
    newer = ("model.forest", "conversion.json", "latency.json")
    old = changed(package, tmp_path, without=newer, **{"model.onnx": onnx, "signature.json": signature})
    values = world.rows.head(500).select(FEATURES.names).to_numpy()
    np.testing.assert_allclose(load(old).answer(values)[0], load(package).answer(values)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NEEDED)
def test_a_package_that_lacks_a_part_is_refused(package: Package, tmp_path: Path, name: str) -> None:
    with pytest.raises(Conflict, match=f"its package has no {name}; register it once more"):
        load(changed(package, tmp_path, without=(name,)))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"features.json": {"version": "other"}}, "was fitted on features other, the service computes"),
        ({"signature.json": {"inputs": ["amount", "age"]}}, "takes age, which the service does not compute"),
        ({"signature.json": {"inputs": ["amount"]}}, "columns, its signature names 1"),
        ({"signature.json": {}}, "its package cannot be read"),
        ({"calibrator.json": {"kind": "tarot"}}, "its package cannot be read"),
        ({"policy.json": {"costs": 7}}, "its package cannot be read"),
    ],
)
def test_parts_that_do_not_fit_are_named(package: Package, tmp_path: Path, files: dict[str, Any], told: str) -> None:
    with pytest.raises(Conflict, match=told):
        load(changed(package, tmp_path, **files))


def test_a_package_without_a_model_is_refused(package: Package, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match=r"model\.forest or model\.onnx"):
        load(changed(package, tmp_path, without=("model.forest",)))


def test_a_model_that_does_not_reproduce_its_examples_is_refused(package: Package, tmp_path: Path) -> None:
    examples = json.loads(package.bytes("examples.json"))
    examples["outputs"][3] += 0.1
    with pytest.raises(ServiceError, match="example 3 scores"):
        load(changed(package, tmp_path, **{"examples.json": examples}))
