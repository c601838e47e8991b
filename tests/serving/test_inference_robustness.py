"""Clients that are slow, hasty or half gone, before models of both kinds: those answered at once, and those owed."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.serving.conftest import Wire, chunked, post, wire_to
from tests.serving.model_folders import ROWS, SUM, Served, folder_host, put_model, served

from vitok.serving import HotRequest, Later, Reply, Runtime, running
from vitok.serving.inference import Hosted, InferEndpoint
from vitok.serving.inference_http import inference_application
from vitok.serving.runners import CallableRunner
from vitok.serving.tensors import TensorSpec

FAST, SLOW = "/v2/models/fast/infer", "/v2/models/slow/infer"


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    put_model(folder, "fast", 1, SUM.format(sleep=0), ROWS)
    put_model(folder, "slow", 1, SUM.format(sleep=0.03), ROWS)
    with served(folder_host(folder, pinned=["fast", "slow"])) as found:
        yield found


@pytest.fixture
def wire(services: Served) -> Iterator[Wire]:
    with wire_to(services.service) as opened:
        yield opened


def body(value: float = 1.0, **more: Any) -> bytes:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [value, 0.5]}
    return json.dumps({"inputs": [tensor], **more}).encode()


def total(data: bytes) -> float:
    return float(json.loads(data)["outputs"][0]["data"][0])


def test_answers_keep_their_order_whatever_each_takes(wire: Wire) -> None:
    paths = [SLOW, FAST, FAST, SLOW, "/v2/models/none/infer", FAST, SLOW]
    wire.send(b"".join(post(body(i, id=str(i)), path=path) for i, path in enumerate(paths)))
    replies = wire.replies(len(paths))
    assert [reply.status for reply in replies] == [200, 200, 200, 200, 404, 200, 200]
    assert [total(reply.body) for i, reply in enumerate(replies) if i != 4] == [0.5, 1.5, 2.5, 3.5, 5.5, 6.5]


def test_a_client_that_sends_byte_by_byte(wire: Wire, services: Served) -> None:
    message = post(body(2), path=SLOW)
    for i in range(len(message)):
        wire.send(message[i : i + 1])
        if i == len(message) // 2:
            with wire_to(services.service) as other:
                other.send(post(body(3), path=FAST))
                assert total(other.reply().body) == 3.5
    assert total(wire.reply().body) == 2.5


def test_chunked_bodies(wire: Wire) -> None:
    whole = body(4)
    for path in (FAST, SLOW):
        wire.send(chunked(whole[:7], whole[7:8], whole[8:], path=path))
        assert total(wire.reply().body) == 4.5


def test_a_client_that_has_closed_its_side_gets_its_answers(wire: Wire) -> None:
    wire.send(post(body(1), path=SLOW) + post(body(2), path=FAST))
    wire.socket.shutdown(socket.SHUT_WR)
    assert [total(reply.body) for reply in wire.replies(2)] == [1.5, 2.5]
    assert wire.ended()


def test_clients_that_go_away_leave_nothing_behind(services: Served) -> None:
    for _ in range(30):
        with wire_to(services.service) as one:
            one.send(post(body(), path=SLOW) * 3)
    until = time.monotonic() + 20
    queue = services.host.get("slow").queue
    while queue is not None and queue.waiting_rows and time.monotonic() < until:
        threading.Event().wait(0.01)
    door = services.service.door
    with wire_to(services.service) as one:
        one.send(post(body(5), path=SLOW))
        assert total(one.reply().body) == 5.5
    assert (door.faults, door._owed) == (0, {})


def test_a_client_that_does_not_read(services: Served) -> None:
    with wire_to(services.service) as deaf:
        deaf.socket.settimeout(0.5)
        message = post(body(), path=FAST)
        try:
            for _ in range(400):
                deaf.send(message * 100)
        except TimeoutError:
            pass  # the server has stopped reading from whoever does not read
        with wire_to(services.service) as other:
            other.send(post(body(6), path=FAST))
            assert total(other.reply().body) == 6.5


def held_model() -> tuple[InferEndpoint, threading.Event, threading.Event]:
    """A model that waits until it is let go, behind a queue of few places."""
    entered, released = threading.Event(), threading.Event()

    def run(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        entered.set()
        assert released.wait(20)
        return {"y": tensors["x"].sum(axis=1)}

    runner = CallableRunner(run, [TensorSpec("x", "FP64", (-1, 2))], [TensorSpec("y", "FP64", (-1,))])
    hosted = Hosted("held", Runtime(runner, version="held/1"), queue={"max_waiting": 4, "max_rows": 2}, deadline=30)
    return InferEndpoint(hosted), entered, released


def test_beyond_the_queue_requests_are_refused_at_once_and_what_waits_is_answered(services: Served) -> None:
    endpoint, entered, released = held_model()
    app = inference_application(services.host)
    with running(app, [endpoint]) as service, wire_to(service) as one, wire_to(service) as other:
        one.send(post(body(0), path=endpoint.path))
        assert entered.wait(10)
        one.send(b"".join(post(body(i), path=endpoint.path) for i in range(1, 5)))
        # The other connection is read after the first, whose four requests fill the queue.
        queue = endpoint.hosted.queue
        assert queue is not None
        until = time.monotonic() + 10
        while queue.waiting_rows < 4 and time.monotonic() < until:
            threading.Event().wait(0.005)
        other.send(post(body(9), path=endpoint.path))
        refusal = other.reply()
        assert (refusal.status, int(refusal.headers["retry-after"]) >= 1) == (429, True)
        assert "full" in json.loads(refusal.body)["error"]
        service.stop()
        released.set()
        assert [total(reply.body) for reply in one.replies(5)] == [0.5, 1.5, 2.5, 3.5, 4.5]
        assert one.ended()
        assert endpoint.hosted.counts["refused"] == 1
    endpoint.hosted.close()


def test_what_is_refused_whatever_it_holds_is_not_read() -> None:
    endpoint, entered, released = held_model()
    sent = [HotRequest(body(i), time.perf_counter_ns(), []) for i in range(6)]

    async def ask() -> None:
        first = endpoint.handle(sent[:1])
        assert await asyncio.to_thread(entered.wait, 10)
        waiting = endpoint.handle(sent[1:5])
        assert [type(reply) for reply in (*first, *waiting)] == [Later] * 5
        now = time.perf_counter_ns()
        unread = [HotRequest(b"no JSON", now, []), HotRequest(b'{"timeout"', now, []), HotRequest(b"{}", now, [])]
        refused = [*endpoint.handle(sent[5:]), *endpoint.handle(unread)]
        # One that brings a deadline of its own is read, and then it is wrong.
        assert [reply.status for reply in refused if isinstance(reply, Reply)] == [429, 429, 400, 429]
        told = {reply.headers for reply in refused if isinstance(reply, Reply) and reply.status == 429}
        assert len(told) == 1
        assert b"retry-after: " in told.pop()
        assert endpoint.hosted.counts["refused"] == 4
        released.set()
        endpoint.hosted.close()

    asyncio.run(ask())
    queue = endpoint.hosted.queue
    assert queue is not None
    assert queue.refused == 3


def test_a_request_that_cannot_be_answered_in_time_is_refused_on_arrival(wire: Wire, services: Served) -> None:
    wire.send(post(body(parameters={"timeout": 1}), path=SLOW))
    refusal = wire.reply()
    assert (refusal.status, refusal.headers["retry-after"]) == (503, "1")
    assert "deadline" in json.loads(refusal.body)["detail"]


def test_after_the_end_a_queue_takes_nothing(tmp_path: Path) -> None:
    put_model(tmp_path, "slow", 1, SUM.format(sleep=0.03), ROWS)
    host = folder_host(tmp_path, pinned=["slow"])
    with served(host) as found, wire_to(found.service) as one:
        one.send(post(body(), path=SLOW))
        assert one.reply().status == 200
        host.close()
        one.send(post(body(), path=SLOW))
        refusal = one.reply()
        assert (refusal.status, "retry-after" in refusal.headers) == (503, True)
