"""`vitok serve-models` as a process: both protocols, logs, workers, TLS; signals and what they must not lose."""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.serving.conftest import Wire, post
from tests.serving.model_folders import ROWS, SUM, put_model

from vitok import decisions
from vitok.console.model_dressing import feature_names
from vitok.console.model_serving import ServingPlan, n_bytes, serve_plan
from vitok.errors import InvalidInput, ServiceError
from vitok.serving.hosting import FolderCatalogue
from vitok.serving.runtime import Runtime

SIGNATURE = {"inputs": ["amount", "age"]}
CALIBRATOR = {"kind": "platt", "slope": 1.0, "intercept": 0.0, "on_logit": False}
BODY = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2.5]}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put_model(tmp_path / "models", "sum", 1, SUM.format(sleep=0), ROWS, signature=SIGNATURE)
    put_model(tmp_path / "models", "slow", 1, SUM.format(sleep=0.2), ROWS)
    return tmp_path


@contextlib.contextmanager
def process(folder: Path, *options: str) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    command = [sys.executable, "-W", "error", "-m", "vitok", "serve-models", "--models", str(folder / "models")]
    command += ["--port", "0", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            assert line, child.communicate()[1]
            yield child, json.loads(line)
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGCONT)
                child.terminate()
                try:
                    child.wait(20)
                except subprocess.TimeoutExpired:
                    child.kill()


def place(found: dict[str, Any]) -> tuple[str, int]:
    host, port = found["http"].partition("://")[2].rsplit(":", 1)
    return host, int(port)


@contextlib.contextmanager
def wire(found: dict[str, Any]) -> Iterator[Wire]:
    with socket.create_connection(place(found), timeout=20) as connection:
        yield Wire(connection)


def infer(model: str = "sum", **more: Any) -> bytes:
    return post(json.dumps(BODY | more).encode(), path=f"/v2/models/{model}/infer")


def test_both_protocols_and_a_log(folder: Path) -> None:
    grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")
    from vitok.serving.inference_grpc import stub
    from vitok.serving.inference_proto import messages

    with process(folder, "--grpc-port", "0", "--log", str(folder / "log"), "--pin", "sum") as (child, found):
        assert found["models"] == ["slow", "sum"]
        with wire(found) as one:
            one.send(infer(id="h"))
            answer = json.loads(one.reply().body)
        assert answer["outputs"][0]["data"] == [3.5]
        types = messages()
        asked = types["ModelInferRequest"](model_name="sum", id="g")
        asked.inputs.append(types["ModelInferRequest.InferInputTensor"](name="x", datatype="FP64", shape=[1, 2]))
        asked.inputs[0].contents.fp64_contents.extend([2, 2])
        with grpc.insecure_channel(found["grpc"]) as channel:
            assert list(stub(channel)["ModelInfer"](asked).outputs[0].contents.fp64_contents) == [4.0]
        put_model(folder / "models", "sum", 2, SUM.format(sleep=0), ROWS, signature=SIGNATURE, calibrator=CALIBRATOR)
        until = time.monotonic() + 10
        with wire(found) as one:
            version = "1"
            while version == "1" and time.monotonic() < until:
                one.send(infer())
                answer = json.loads(one.reply().body)
                version = answer["model_version"]
        assert version == "2"
        child.send_signal(signal.SIGTERM)
        _, errors = child.communicate(timeout=20)
        assert (child.returncode, errors) == (0, "")
    frame = decisions.Tail(folder / "log" / "sum").read()
    assert frame is not None
    assert frame["request_id"].to_list()[:2] == ["h", "g"]
    assert frame["f_amount"].to_list()[:2] == [1.0, 2.0]
    assert frame["probability"].to_list()[0] == 3.5
    np.testing.assert_allclose(frame["probability"].to_list()[-1], 1 / (1 + np.exp(-3.5)))


def test_a_contract_refuses_rows(folder: Path) -> None:
    (folder / "rules.yaml").write_text(
        "kind: DataContract\napiVersion: v3.0.2\nid: r\nname: r\nversion: 1.0.0\nstatus: active\n"
        "schema:\n  - name: rows\n    properties:\n"
        "      - {name: amount, logicalType: number, required: true, logicalTypeOptions: {minimum: 0}}\n"
        "      - {name: age, logicalType: number, required: false}\n"
    )
    with process(folder, "--contract", str(folder / "rules.yaml"), "--pin", "sum") as (_, found), wire(found) as one:
        wrong = {"inputs": [BODY["inputs"][0] | {"data": [-1, 2.5]}]}
        one.send(post(json.dumps(wrong).encode(), path="/v2/models/sum/infer") + infer())
        first, second = one.replies(2)
        assert (first.status, second.status) == (422, 200)
        assert "amount: got -1" in json.loads(first.body)["error"]
        one.send(infer("slow"))
        assert "does not fit the contract" in json.loads(one.reply().body)["error"]


def test_a_signal_ends_it_once_what_is_in_flight_is_answered(folder: Path) -> None:
    with process(folder, "--pin", "slow") as (child, found), wire(found) as one:
        one.send(infer("slow", id="a") + infer("slow", id="b"))
        with wire(found) as other:
            # Another request is answered meanwhile, so the first two have been read.
            other.send(infer())
            assert other.reply().status == 200
        child.send_signal(signal.SIGTERM)
        assert [json.loads(reply.body)["id"] for reply in one.replies(2)] == ["a", "b"]
        assert one.ended()
        assert child.wait(20) == 0


def test_it_goes_on_after_it_was_stopped_for_a_while(folder: Path) -> None:
    with process(folder, "--pin", "sum", "--log", str(folder / "log")) as (child, found), wire(found) as one:
        child.send_signal(signal.SIGSTOP)
        one.send(infer(id="a") * 50)
        one.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            one.reply()
        one.socket.settimeout(20)
        child.send_signal(signal.SIGCONT)
        assert {reply.status for reply in one.replies(50)} == {200}


def test_nothing_acknowledged_is_lost_when_it_is_killed(folder: Path) -> None:
    acknowledged: list[str] = []

    def ask(found: dict[str, Any]) -> None:
        with wire(found) as one, contextlib.suppress(AssertionError, OSError):
            while True:
                one.send(infer() * 8)
                for reply in one.replies(8):
                    acknowledged.append(json.loads(reply.body)["parameters"]["decision_id"])

    with process(folder, "--pin", "sum", "--log", str(folder / "log")) as (child, found):
        threads = [threading.Thread(target=ask, args=(found,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 20
        while len(acknowledged) < 2000 and time.monotonic() < until:
            threading.Event().wait(0.01)
        child.kill()
        for thread in threads:
            thread.join(20)
        child.wait(20)
    assert len(acknowledged) >= 2000
    kept: set[str] = set()
    tail = decisions.Tail(folder / "log" / "sum")
    while (frame := tail.read()) is not None and len(frame):
        kept |= set(frame["decision_id"].to_list() if frame["decision_id"].dtype == str else frame["request_id"])
    assert set(acknowledged) <= kept


def test_workers_share_a_port_and_a_dead_one_is_replaced(folder: Path) -> None:
    log = folder / "log"
    with process(folder, "--workers", "2", "--pin", "sum", "--log", str(log)) as (child, found):
        seen = children_of(child.pid)
        assert len(seen) == 2
        assert sorted(item.name for item in (log / "sum").iterdir()) == ["worker-0", "worker-1"]
        os.kill(seen[0], signal.SIGKILL)
        until = time.monotonic() + 30
        # Whoever connects meanwhile comes to the worker that lives.
        while time.monotonic() < until:
            with contextlib.suppress(AssertionError, OSError), wire(found) as one:
                one.send(infer())
                assert one.reply().status == 200
            now = children_of(child.pid)
            if len(now) == 2 and seen[0] not in now:
                break
        else:
            pytest.fail("the dead worker was not replaced")
        child.send_signal(signal.SIGTERM)
        _, errors = child.communicate(timeout=30)
        assert child.returncode == 0
        assert "worker" in errors
        assert "is started anew" in errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in (*seen, *now))


def children_of(pid: int) -> list[int]:
    return [int(item) for item in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_workers_end_with_the_process_that_watches_them(folder: Path) -> None:
    with process(folder, "--workers", "2", "--pin", "sum") as (child, _):
        workers = children_of(child.pid)
        child.kill()
        until = time.monotonic() + 20
        while any(alive(pid) for pid in workers) and time.monotonic() < until:
            threading.Event().wait(0.05)
        assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    # One that has ended and that nobody has waited for is a zombie.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_that_cannot_start_end_all(folder: Path) -> None:
    command = [sys.executable, "-m", "vitok", "serve-models", "--models", str(folder / "models"), "--port", "0"]
    done = subprocess.run([*command, "--workers", "2", "--pin", "none"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "model 'none' does not exist" in done.stderr
    assert "before it was ready" in done.stderr


def certificate(folder: Path) -> tuple[Path, Path]:
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    named = "subjectAltName=IP:127.0.0.1,DNS:localhost"
    places = ("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"))
    command = ("openssl", *made.split(), "-addext", named, *places)
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"openssl makes no certificate: {done.stderr.decode()}")
    return folder / "cert.pem", folder / "key.pem"


def test_tls_for_both_protocols(folder: Path) -> None:
    grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")
    from vitok.serving.inference_grpc import stub
    from vitok.serving.inference_proto import messages

    cert, key = certificate(folder)
    options = ("--tls-cert", str(cert), "--tls-key", str(key), "--grpc-port", "0", "--pin", "sum")
    with process(folder, *options) as (_, found):
        assert found["http"].startswith("https://")
        trusting = ssl.create_default_context(cafile=str(cert))
        connection = http.client.HTTPSConnection(*place(found), timeout=10, context=trusting)
        for _ in range(3):
            connection.request("POST", "/v2/models/sum/infer", json.dumps(BODY))
            assert json.loads(connection.getresponse().read())["outputs"][0]["data"] == [3.5]
        connection.close()
        credentials = grpc.ssl_channel_credentials(cert.read_bytes())
        with grpc.secure_channel(found["grpc"], credentials) as channel:
            assert stub(channel)["ServerLive"](messages()["ServerLiveRequest"]()).live


def test_options_that_do_not_fit(folder: Path) -> None:
    models = folder / "models"
    with pytest.raises(InvalidInput, match="--models"):
        ServingPlan(models=None, home=None)
    with pytest.raises(InvalidInput, match="--tls-key"):
        ServingPlan(models=models, home=None, certificate=models)
    with pytest.raises(InvalidInput, match="--workers"):
        ServingPlan(models=models, home=None, workers=0)
    with pytest.raises(InvalidInput, match="be a number of bytes"):
        n_bytes("--max-memory", "much")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        plan = ServingPlan(models=models, home=None, port=taken.getsockname()[1])
        with pytest.raises(ServiceError, match="cannot listen on 127"):
            serve_plan(plan, ready=lambda _: None, tell=lambda _: None)


def test_names_of_columns(folder: Path) -> None:
    catalogue = FolderCatalogue(folder / "models")

    def loaded(name: str) -> Runtime:
        version = catalogue.current(name)
        return Runtime.load(catalogue.package(name, version), version=f"{name}/{version}")

    assert feature_names(catalogue, loaded("sum")) == ["amount", "age"]
    assert feature_names(catalogue, loaded("slow")) == ["x0", "x1"]
    put_model(folder / "models", "wrong", 1, SUM.format(sleep=0), ROWS, signature={"inputs": ["a"]})
    with pytest.raises(ServiceError, match="names 1 inputs, the model takes 2"):
        feature_names(catalogue, loaded("wrong"))
