"""A server that is killed, ended, stopped, and asked by slow, hasty and half-gone clients: what is lost or wrong.

Two models behind one port, both with their contract checked and their log on: trees that are answered in the turn of
the event loop, and a network behind a queue. Each answer is held against the model's own score.
"""

import contextlib
import itertools
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench._server import free_port, started  # noqa: E402
from bench.features._claim import path, tell  # noqa: E402
from bench.serving import _forest, _mlp  # noqa: E402
from bench.serving._serve import SCALE  # noqa: E402

from vitok import decisions, ids  # noqa: E402
from vitok.serving import Runtime  # noqa: E402
from vitok.serving.load import Target, run_load  # noqa: E402

MODELS = ("fraud", "mlp")
SIZES = (_mlp.WIDTH, 2048, 2048, 2048, 1)
ROWS = 512
KILLS = max(2, round(10 * SCALE))
ENDS = max(2, round(5 * SCALE))
STOPS = max(1, round(5 * SCALE))
STOP_SECONDS = 0.3
BURST = 200
TIMEOUT = 30.0
# By itself and among others a row may differ in the last places of 32 bits.
TOLERANCE = 1e-5


class Question(NamedTuple):
    """A request as it goes over the wire, and the score that its answer must hold."""

    head: bytes
    body: bytes
    score: float

    @property
    def message(self) -> bytes:
        return b"%bcontent-length: %d\r\n\r\n%b" % (self.head, len(self.body), self.body)

    def chunked(self, cuts: Sequence[int]) -> bytes:
        """Returns it with its body in chunks that are cut at these places."""
        edges = [0, *sorted(cuts), len(self.body)]
        parts = [self.body[at:to] for at, to in itertools.pairwise(edges) if to > at]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
        return b"%btransfer-encoding: chunked\r\n\r\n%b0\r\n\r\n" % (self.head, chunks)


class Answer(NamedTuple):
    """What came back."""

    status: int
    score: float
    decision: str


class Wire:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        self.stream = self.socket.makefile("rb")

    def answer(self) -> Answer | None:
        """Returns the next answer; None where the connection ends before it is whole."""
        try:
            first, length = self.stream.readline(), 0
            if not first.endswith(b"\r\n"):
                return None
            while line := self.stream.readline().strip():
                name, _, value = line.lower().partition(b":")
                length = int(value) if name == b"content-length" else length
            content = self.stream.read(length)
        except OSError:
            return None
        if len(content) < length or not length:
            return None
        told = json.loads(content)
        status = int(first.split()[1])
        if status != 200:
            return Answer(status, float("nan"), "")
        return Answer(status, float(told["outputs"][0]["data"][0]), told["parameters"]["decision_id"])

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


class Seen:
    """What has been seen: how much was asked, what went wrong, and what was noted besides."""

    def __init__(self) -> None:
        self.asked = 0
        self.wrong: list[str] = []
        self.notes: list[str] = []

    def check(self, about: str, question: Question, answer: Answer | None) -> None:
        self.asked += 1
        if answer is None:
            self.wrong.append(f"{about}: no answer")
        elif answer.status != 200:
            self.wrong.append(f"{about}: {answer.status}")
        elif abs(answer.score - question.score) > TOLERANCE:
            self.wrong.append(f"{about}: {answer.score} for {question.score}")

    def hold(self, about: str, *, true: bool) -> None:
        if not true:
            self.wrong.append(about)


def prepare(folder: Path) -> dict[str, list[Question]]:
    """Writes the models and returns questions for each."""
    _forest.prepare(folder)
    _mlp.save(folder / "models" / "mlp" / "1", SIZES)
    rng = np.random.default_rng(5)
    found = {}
    for name in MODELS:
        runtime = Runtime.load(folder / "models" / name / "1")
        spec = runtime.inputs[0]
        X = rng.normal(size=(ROWS, runtime.n_features)).round(6).astype(runtime.dtype)
        head = f"POST /v2/models/{name}/infer HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n".encode()
        found[name] = [
            Question(
                head,
                json.dumps(
                    {"inputs": [{"name": spec.name, "shape": [1, X.shape[1]], "datatype": spec.datatype, "data": row}]}
                ).encode(),
                score,
            )
            for row, score in zip(X.tolist(), runtime.score(X).tolist(), strict=True)
        ]
    return found


@contextlib.contextmanager
def server(folder: Path, port: int) -> Iterator[int]:
    """Runs the server; gives its process."""
    command = [part.replace("{port}", str(port)) for part in _forest.ours(folder)]
    variables = {"PYTHONPATH": path(), "OMP_NUM_THREADS": "1"}
    with started(command, port, variables=variables) as process:
        yield process.pid


def logged(folder: Path) -> set[str]:
    """Returns the ids of the decisions in the logs of both models."""
    found: set[str] = set()
    for name in MODELS:
        column = decisions.read(folder / "log" / name, columns=["decision_id"])["decision_id"]
        found.update(item if isinstance(item, str) else ids.text(item) for item in column.to_list())
    return found


def ask_until_gone(port: int, asked: Sequence[Question], seen: Seen, known: list[str], stop: threading.Event) -> None:
    """Keeps eight requests in flight on one connection and notes the decisions of all answers, until it breaks."""
    wire = Wire(port)
    sent = read = 0
    with contextlib.suppress(OSError):
        while True:
            while sent - read < 8 and not stop.is_set():
                wire.socket.sendall(asked[sent % len(asked)].message)
                sent += 1
            if read == sent:
                break
            answer = wire.answer()
            if answer is None:
                break
            seen.check("before a kill", asked[read % len(asked)], answer)
            known.append(answer.decision)
            read += 1
    wire.close()


def killed(folder: Path, questions: dict[str, list[Question]], seen: Seen) -> None:
    """Kills the server again and again under load: what was acknowledged is in the log of the next."""
    known: list[str] = []
    rng = np.random.default_rng(7)
    for _ in range(KILLS):
        port = free_port()
        stop = threading.Event()
        with server(folder, port) as pid:
            clients = [
                threading.Thread(target=ask_until_gone, args=(port, questions[name], seen, known, stop))
                for name in (*MODELS, *MODELS)
            ]
            for client in clients:
                client.start()
            time.sleep(float(rng.uniform(0.3, 0.8)))
            os.kill(pid, signal.SIGKILL)
            stop.set()
            for client in clients:
                client.join()
    lost = set(known) - logged(folder)
    seen.hold(f"{len(lost)} acknowledged decisions are not in the log", true=not lost)
    seen.notes.append(f"{KILLS} x kill -9: {len(known):,} acknowledged, {len(lost)} lost")


def ended(folder: Path, questions: dict[str, list[Question]], seen: Seen) -> None:
    """Ends the server while much is owed: whoever was there gets his answers, and the process leaves with 0."""
    longest = 0.0
    for _ in range(ENDS):
        port = free_port()
        command = [part.replace("{port}", str(port)) for part in _forest.ours(folder)]
        with started(command, port, variables={"PYTHONPATH": path(), "OMP_NUM_THREADS": "1"}) as process:
            wires = [(Wire(port), questions[name]) for name in MODELS for _ in range(8)]
            for wire, asked in wires:
                wire.socket.sendall(b"".join(question.message for question in asked[:BURST]))
            # The first answer of each says that the server has it; the rest is owed.
            firsts = [(asked[0], wire.answer()) for wire, asked in wires]
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            for question, answer in firsts:
                seen.check("before SIGTERM", question, answer)
            for wire, asked in wires:
                for question in asked[1:BURST]:
                    seen.check("after SIGTERM", question, wire.answer())
                seen.hold("after SIGTERM a connection goes on", true=wire.answer() is None)
                wire.close()
            status = process.wait(TIMEOUT)
            longest = max(longest, time.monotonic() - began)
            seen.hold(f"after SIGTERM it left with {status}", true=status == 0)
    seen.notes.append(f"{ENDS} x SIGTERM with {len(MODELS) * 8 * BURST:,} owed: gone after {longest:.2f} s at most")


def stopped(pid: int, target: Target, seen: Seen) -> None:
    """Stops the process under an open loop and lets it go on."""

    def stop() -> None:
        for _ in range(STOPS):
            time.sleep(1.0)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(STOP_SECONDS)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=stop)
    thread.start()
    report = run_load(target, rate=1_000, seconds=STOPS * (1.0 + STOP_SECONDS) + 1, connections=512)
    thread.join()
    seen.asked += report.offered
    seen.hold(f"SIGSTOP: {report.failed} of {report.offered} failed", true=not report.failed)
    seen.hold("SIGSTOP: the stall is not in the latency", true=report.latency.max >= 0.9e6 * STOP_SECONDS)
    seen.notes.append(
        f"{STOPS} x SIGSTOP for {STOP_SECONDS:g} s at 1,000/s: {report.failed} failed, max "
        f"{report.latency.max / 1e3:,.0f} ms, P50 {report.latency.quantile(0.5) / 1e3:.2g} ms"
    )


def slow(port: int, questions: dict[str, list[Question]], target: Target, seen: Seen) -> None:
    """Has clients send byte by byte, and others read nothing, while an open loop goes on."""
    slow_ones = [(Wire(port), questions[name][i]) for i in range(20) for name in MODELS]
    deaf = [Wire(port) for _ in range(8)]
    for wire in deaf:
        wire.socket.settimeout(0.05)
        # A small window, so that the server is the one that has to hold back.
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        many = b"".join(question.message for question in questions["fraud"]) * 4
        with contextlib.suppress(TimeoutError):
            wire.socket.sendall(many)
    # What they sent is work like any other; from then on they are only in the way.
    time.sleep(1.0)
    found = []
    load = threading.Thread(target=lambda: found.append(run_load(target, rate=500, seconds=3, connections=64)))
    load.start()
    place = 0
    longest = max(len(question.message) for _, question in slow_ones)
    while place < longest:
        for wire, question in slow_ones:
            if place < len(question.message):
                wire.socket.sendall(question.message[place : place + 1])
        place += 1
        time.sleep(0.001)
    for wire, question in slow_ones:
        seen.check("byte by byte", question, wire.answer())
        wire.close()
    load.join()
    for wire in deaf:
        wire.close()
    report = found[0]
    seen.asked += report.offered
    seen.hold(f"beside slow clients {report.failed} of {report.offered} failed", true=not report.failed)
    seen.notes.append(
        f"{len(slow_ones)} clients that send a byte at a time and {len(deaf)} that do not read: others at 500/s "
        f"{report.quantile(0.99)}, {report.failed} failed"
    )


def hasty(port: int, questions: dict[str, list[Question]], seen: Seen) -> None:
    """Pipelines requests for both models on one connection: answers keep the order."""
    mixed = [questions[MODELS[i % 2]][i] for i in range(BURST)]
    wires = [Wire(port) for _ in range(16)]
    for wire in wires:
        wire.socket.sendall(b"".join(question.message for question in mixed))
    for wire in wires:
        for question in mixed:
            seen.check("pipelined", question, wire.answer())
        wire.close()
    seen.notes.append(f"{len(wires)} x {BURST} pipelined to both models in turn")


def in_chunks(port: int, questions: dict[str, list[Question]], seen: Seen) -> None:
    """Sends bodies in chunks, cut anywhere, and in pieces that are cut elsewhere."""
    rng = np.random.default_rng(11)
    wire = Wire(port)
    for i in range(BURST):
        question = questions[MODELS[i % 2]][i]
        message = question.chunked(rng.integers(1, len(question.body), 5).tolist())
        place = int(rng.integers(1, len(message)))
        wire.socket.sendall(message[:place])
        wire.socket.sendall(message[place:])
        seen.check("chunked", question, wire.answer())
    wire.close()
    seen.notes.append(f"{BURST} chunked bodies")


def half_closed(port: int, questions: dict[str, list[Question]], seen: Seen) -> None:
    """Closes the sending side at once; some go away altogether."""
    for i in range(BURST):
        wire = Wire(port)
        asked = [questions[name][i] for name in MODELS]
        wire.socket.sendall(b"".join(question.message for question in asked))
        if i % 4 == 3:
            wire.close()
            continue
        wire.socket.shutdown(socket.SHUT_WR)
        for question in asked:
            seen.check("half closed", question, wire.answer())
        seen.hold("half closed: it stays open", true=wire.answer() is None)
        wire.close()
    seen.notes.append(f"{BURST} half closed or gone, of which a quarter did not wait for the answer")


def descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def main() -> None:
    seen = Seen()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        questions = prepare(folder)
        killed(folder, questions, seen)
        ended(folder, questions, seen)
        port = free_port()
        with server(folder, port) as pid:
            targets = [
                Target(url=f"http://127.0.0.1:{port}/v2/models/{name}/infer", bodies=[q.body for q in questions[name]])
                for name in MODELS
            ]
            hasty(port, questions, seen)
            before = descriptors(pid)
            for target in targets:
                stopped(pid, target, seen)
            slow(port, questions, targets[0], seen)
            hasty(port, questions, seen)
            in_chunks(port, questions, seen)
            half_closed(port, questions, seen)
            until = time.monotonic() + 10
            while descriptors(pid) > before and time.monotonic() < until:
                time.sleep(0.05)
            after = descriptors(pid)
    seen.hold(f"{before} descriptors have become {after}", true=after <= before)
    kinds = sorted({text.partition(":")[0]: text for text in seen.wrong}.values())
    tell(
        "requests lost or answered wrongly by a server that is killed, ended, stopped and badly asked",
        value=len(seen.wrong),
        unit="requests",
        bar="0; all that was acknowledged is in the log; the drain completes",
        met=not seen.wrong,
        n=seen.asked,
        protocol=(
            "LightGBM of 200 trees in the turn of the event loop and a network of 3 x 2048 behind a queue, contract "
            f"check and log on; each score held against the model's own. {'; '.join(seen.notes)}; {before} descriptors "
            f"before and {after} after." + (f" Wrong: {'; '.join(kinds)}." if kinds else "")
        ),
    )


if __name__ == "__main__":
    main()
