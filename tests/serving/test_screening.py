"""Rows held against the contract and the reference profile before the model runs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.guard import AnomalyScorer
from vitok.serving import HotRequest, Reply, Runtime
from vitok.serving.inference import Breach, Hosted, InferEndpoint
from vitok.serving.runners import CallableRunner
from vitok.serving.screening import Screen
from vitok.serving.tensors import TensorSpec
from vitok.stats import FrozenEdges


@pytest.fixture(scope="module")
def scorer() -> AnomalyScorer:
    X = np.random.default_rng(3).normal(size=(4_000, 2))
    columns = []
    for name, column in zip(("a", "b"), X[:2_000].T, strict=True):
        edges = FrozenEdges.from_values(column)
        columns.append({"name": name, **edges.to_dict(), "counts": edges.count(column).tolist()})
    profile = {"kind": "vitok.reference_profile/1", "n": 2_000, "ignored": [], "columns": columns}
    return AnomalyScorer.fit(profile, X[2_000:], false_alarm_rate=0.01)


def total(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"y": tensors["x"].sum(axis=1)}


def hosted(width: int = 2) -> Hosted:
    runner = CallableRunner(total, [TensorSpec("x", "FP64", (-1, width))], [TensorSpec("y", "FP64", (-1,))])
    return Hosted("m", Runtime(runner, version="m/1"))


def body(*rows: Sequence[float], **more: Any) -> HotRequest:
    flat = [value for row in rows for value in row]
    tensor = {"name": "x", "shape": [len(rows), 2], "datatype": "FP64", "data": flat}
    return HotRequest(json.dumps({"inputs": [tensor], **more}).encode(), 0, [])


def ask(model: Hosted, *requests: HotRequest) -> list[Reply]:
    return [reply for reply in InferEndpoint(model).handle(requests) if isinstance(reply, Reply)]


def negative(X: np.ndarray) -> list[Breach]:
    return [(int(row), "a", "a: must be above -50") for row in np.flatnonzero(X[:, 0] < -50)]


def test_an_odd_row_is_counted_and_told_where_asked(scorer: AnomalyScorer) -> None:
    model = hosted()
    screen = Screen(scorer)
    screen.dress(model)
    explain = {"parameters": {"explain": True}}
    replies = ask(model, body((0.1, 0.2)), body((0.1, 1e9)), body((0, 0), (1e9, 0), **explain), body((0, 0), **explain))
    assert [reply.status for reply in replies] == [200] * 4
    assert "parameters" not in json.loads(replies[1].body)
    told = [json.loads(reply.body)["parameters"] for reply in replies[2:]]
    assert [found["anomaly"] for found in told] == [True, False]
    one = scorer.explain([1e9, 0])
    assert told[0]["anomaly_scores"][1] == f"{one.total:.6g}"
    assert told[0]["anomaly_p_values"][1] == f"{one.p_value:.4g}"
    assert (screen.rows, screen.flagged) == (5, 2)


def test_an_odd_row_refuses_its_request_where_told_to(scorer: AnomalyScorer) -> None:
    model = hosted()
    model.rules = negative
    screen = Screen(scorer, refuse=True, tell=False)
    screen.dress(model)
    screen.dress(model)
    replies = ask(
        model, body((0, 0)), body((0, 0), (0, 1e9)), body((-1e9, 0)), body((0, 0), parameters={"explain": True})
    )
    assert [reply.status for reply in replies] == [200, 422, 422, 200]
    assert json.loads(replies[1].body)["errors"] == [
        {
            "field": "b",
            "detail": "row 1: the row is unlike those that the model was made on, most of all in b",
        }
    ]
    assert "above -50" in json.loads(replies[2].body)["detail"]
    assert "anomaly" not in json.loads(replies[3].body)["parameters"]
    assert screen.flagged == 1
    assert model.counts["refused"] == 2


def test_another_model_is_refused(scorer: AnomalyScorer) -> None:
    with pytest.raises(InvalidInput, match="2 columns"):
        Screen(scorer).dress(hosted(3))
