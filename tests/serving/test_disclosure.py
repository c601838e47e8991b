"""What of a model's scores leaves, and that the log keeps what the model gave."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.guard import ConfidenceFloor, KeyedNoise
from vitok.serving import HotRequest, Reply, Runtime
from vitok.serving.disclosure import Disclosure
from vitok.serving.inference import Answered, Hosted, InferEndpoint
from vitok.serving.routed import RoutedEndpoint
from vitok.serving.runners import CallableRunner
from vitok.serving.targets import LocalModel
from vitok.serving.tensors import TensorSpec

X = [TensorSpec("x", "FP64", (-1, 2))]
FLOOR = ConfidenceFloor(
    floor=0.8, coverage=0.5, error=0.1, error_bound=0.2, max_error=0.2, n_obs=100, confidence_level=0.95
)
NOISE = KeyedNoise(b"sixteen bytes or more", scale=0.3, thresholds=[0.5])


class Kept:
    def __init__(self) -> None:
        self.scores: list[float] = []

    def record(self, batch: Answered) -> Sequence[bytes]:
        self.scores += batch.score.tolist()
        return [bytes(16)] * len(batch.score)


def first(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    p = tensors["x"][:, 0]
    return {"p": p, "both": np.column_stack([1 - p, p]).astype(np.float32)}


def hosted(**options: Any) -> Hosted:
    outputs = [TensorSpec("p", "FP64", (-1,)), TensorSpec("both", "FP32", (-1, 2))]
    return Hosted("m", Runtime(CallableRunner(first, X, outputs), version="m/1"), **options)


def ask(endpoint: InferEndpoint, *rows: tuple[float, float]) -> list[Reply]:
    requests = []
    for row in rows:
        tensor = {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": row}
        requests.append(HotRequest(json.dumps({"inputs": [tensor]}).encode(), 1 << 62, []))
    return [reply for reply in endpoint.handle(requests) if isinstance(reply, Reply)]


def data(reply: Reply) -> dict[str, list[float | None]]:
    assert reply.status == 200, reply
    return {item["name"]: item["data"] for item in json.loads(reply.body)["outputs"]}


def test_rounded_and_withheld_on_the_way_out_only() -> None:
    kept = Kept()
    model = hosted(recorder=kept)
    disclosure = Disclosure(decimals=2, floor=FLOOR)
    disclosure.dress(model)
    sure, unsure = ask(InferEndpoint(model), (0.91234, 0), (0.61234, 0))
    assert data(sure) == {"p": [0.91], "both": [0.09, 0.91]}
    assert data(unsure) == {"p": [None], "both": [None, None]}
    assert kept.scores == [pytest.approx(0.91234), pytest.approx(0.61234)]
    assert (disclosure.rows, disclosure.withheld) == (2, 1)


def test_noise_is_the_same_for_the_same_row() -> None:
    model = hosted()
    Disclosure(noise=NOISE).dress(model)
    once, again, other = ask(InferEndpoint(model), (0.7, 1), (0.7, 1), (0.7, 2))
    assert data(once) == data(again) != data(other)
    p, both = data(once)["p"][0], data(once)["both"]
    assert p == NOISE.apply([0.7], [[0.7, 1]])[0]
    assert p is not None
    assert both == [pytest.approx(1 - p, rel=1e-5), pytest.approx(p, rel=1e-5)]


def test_a_route_discloses_as_a_model_does() -> None:
    kept = Kept()
    endpoint = RoutedEndpoint("risk", LocalModel("m", lambda rows: rows[:, 0]), inputs=X, recorder=kept)
    Disclosure(decimals=1).dress(endpoint.hosted)
    assert data(ask(endpoint, (0.123, 0))[0]) == {"score": [0.1]}
    assert kept.scores == [0.123]


def test_scores_that_are_no_probabilities_are_the_models_fault() -> None:
    model = hosted()
    Disclosure(noise=NOISE).dress(model)
    reply = ask(InferEndpoint(model), (7.0, 0))[0]
    assert reply.status == 503
    assert "no probabilities" in json.loads(reply.body)["error"]
    single = Disclosure(noise=NOISE)
    assert single(np.zeros((2, 2)), {"p": np.array([[0.2], [0.3]])})["p"].shape == (2, 1)


def test_what_cannot_be_disclosed() -> None:
    with pytest.raises(InvalidInput, match="nothing"):
        Disclosure()
    with pytest.raises(InvalidInput, match="decimals"):
        Disclosure(decimals=0)
    label = CallableRunner(first, X, [TensorSpec("label", "INT64", (-1,))])
    with pytest.raises(InvalidInput, match="FP32 or FP64"):
        Disclosure(decimals=2).dress(Hosted("m", Runtime(label, version="m/1")))
    pair = CallableRunner(first, [*X, TensorSpec("z", "FP64", (-1, 2))], [TensorSpec("p", "FP64", (-1,))])
    with pytest.raises(InvalidInput, match="one matrix"):
        Disclosure(decimals=2).dress(Hosted("m", Runtime(pair, version="m/1")))
