"""Runners of ONNX models: which provider runs them, and what happens where a GPU cannot."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state

from vitok.errors import ServiceError
from vitok.models import fit_boosted_trees
from vitok.serving.runners import OnnxRunner
from vitok.serving.runtime import Runtime

RNG = np.random.default_rng(5)
X = RNG.normal(size=(300, 3)).astype(np.float32)
TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "model.onnx"
    path.write_bytes(fit_boosted_trees(X, X[:, 0] > 0.3, names=["a", "b", "c"], n_trees=4).to_onnx())
    return path


class Machine:
    """ONNX Runtime as it is on a machine with a GPU, all of whose work the processor does in truth.

    Args:
        monkeypatch: Of the test.
        works: Providers that can be started.
        missing: Providers that are left out without a word, as CUDA is without its libraries.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, works: Sequence[str], missing: Sequence[str] = ()) -> None:
        self.works, self.missing = works, missing
        self.opened: list[list[str]] = []
        self.failures = 0
        real = onnxruntime.InferenceSession
        machine = self

        class Session:
            def __init__(self, path: str, options: Any, *, providers: list[str], enable_fallback: int) -> None:
                machine.opened.append(providers)
                if broken := [name for name in providers if name not in (*machine.works, *machine.missing)]:
                    raise state.EPFail(f"no driver for {broken[0]}")
                self._real = real(path, options, providers=[CPU])
                self._providers = [name for name in providers if name not in machine.missing]

            def get_providers(self) -> list[str]:
                return self._providers

            def run(self, names: list[str], fed: dict[str, np.ndarray]) -> Any:
                if self._providers[0] != CPU and machine.failures:
                    machine.failures -= 1
                    raise state.EPFail("CUDA failure 2: out of memory")
                return self._real.run(names, fed)

            def __getattr__(self, name: str) -> Any:
                return getattr(self._real, name)

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "vitok.serving"]


def test_without_a_gpu_the_processor_runs_it(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        runner = OnnxRunner(model)
    assert runner.providers == (CPU,)
    assert told(caplog) == []


def test_the_best_provider_comes_first(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Machine(monkeypatch, works=[TENSORRT, CUDA, CPU])
    assert OnnxRunner(model).providers == (TENSORRT, CUDA, CPU)
    assert told(caplog) == []


def test_a_provider_that_cannot_be_started_is_passed_over(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(monkeypatch, works=[CUDA, CPU])
    assert OnnxRunner(model, name="fraud/3").providers == (CUDA, CPU)
    machine.works = [CPU]
    runner = OnnxRunner(model, name="fraud/3")
    assert runner.providers == (CPU,)
    assert machine.opened[-3:] == [[TENSORRT, CUDA, CPU], [CUDA, CPU], [CPU]]
    first, second = told(caplog)
    assert first.startswith("fraud/3 runs on CUDAExecutionProvider; not started: TensorrtExecutionProvider: ")
    assert "no driver for CUDAExecutionProvider" in second
    assert len(runner.run({"X": X[:2]})) == 2
    assert capsys.readouterr().out == ""


def test_a_provider_that_is_left_out_in_silence_is_told_of(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Machine(monkeypatch, works=[CPU], missing=[TENSORRT, CUDA])
    assert OnnxRunner(model, name="fraud/3").providers == (CPU,)
    assert told(caplog) == [
        "fraud/3 runs on CPUExecutionProvider; not started: TensorrtExecutionProvider: its driver or library is "
        "missing; CUDAExecutionProvider: its driver or library is missing"
    ]


def test_runs_that_fail_on_the_gpu_are_answered(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(monkeypatch, works=[TENSORRT, CUDA, CPU])
    runtime = Runtime.load(model.parent, version="fraud/3")
    wanted = runtime.score(X)
    # Two failures, a success, and then three in a row.
    for failures in (2, 0, 3):
        machine.failures = failures
        for _ in range(3):
            assert (runtime.score(X) == wanted).all()
    assert machine.failures == 0
    endings = [message.partition("GPU, ")[2].partition(":")[0] for message in told(caplog)]
    assert endings == ["the processor ran it"] * 4 + ["it runs on the processor from now on"]
    machine.failures = 5
    assert (runtime.score(X) == wanted).all()
    assert machine.failures == 5


def test_what_fails_on_the_processor_too_is_not_the_gpus_fault(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Machine(monkeypatch, works=[TENSORRT, CUDA, CPU])
    runner = OnnxRunner(model)
    for _ in range(5):
        with pytest.raises(state.InvalidArgument):
            runner.run({"X": X[:2].astype(np.float64)})
    assert runner.providers[0] == TENSORRT
    assert told(caplog) == []


def test_a_model_that_nothing_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, works=[TENSORRT, CUDA, CPU])
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ServiceError, match=r"model\.onnx cannot be run"):
        OnnxRunner(tmp_path / "model.onnx")
