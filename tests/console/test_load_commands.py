"""`vitok load`: what it prints and how it ends."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from vitok.console.load_commands import load

app = typer.Typer()
app.command()(load)
runner = CliRunner()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200 if self.path == "/good" else 503)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_rates_are_held_one_after_another(url: str, tmp_path: Path) -> None:
    bodies = tmp_path / "bodies.jsonl"
    bodies.write_text('{"a":1}\n\n{"a":2}\n')
    options = [
        "--rates",
        "50,100",
        "--seconds",
        "0.2",
        "--connections",
        "2",
        "--constant",
        "--bodies",
        str(bodies),
        "--json",
    ]
    done = runner.invoke(app, [f"{url}/good", *options])
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["offered"] for line in done.stdout.splitlines()] == [10, 20]


def test_failures_end_with_1(url: str, tmp_path: Path) -> None:
    template = tmp_path / "body.json"
    template.write_text('{"d":[$ROW]}')
    options = ["--rates", "50", "--seconds", "0.2", "--template", str(template), "--width", "3", "--connections", "2"]
    done = runner.invoke(app, [f"{url}/bad", *options, "--header", "x-team: a"])
    assert done.exit_code == 1
    assert "status 503" in done.stdout


def test_what_cannot_be_done_ends_with_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for arguments in (
        [f"http://127.0.0.1:{port}/", "--seconds", "0.1"],
        ["nowhere"],
        ["http://127.0.0.1:1/", "--rates", "fast"],
        ["http://127.0.0.1:1/", "--header", "x"],
        ["http://127.0.0.1:1/", "--bodies", "none.jsonl"],
    ):
        assert runner.invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--rates", "-5"], "--rates: got '-5', must be numbers above 0"),
        (["--rates", "nan"], "--rates: got 'nan', must be numbers above 0"),
        (["--seconds", "0"], "--seconds: got 0.0, must be a finite number of seconds above 0"),
        (["--connections", "0"], "--connections: got 0, must be at least 1"),
        (["--connections", "100000000"], "Raise it with ulimit -n"),
        (["--deadline-ms", "0"], "--deadline-ms: got 0.0, must be a finite number of milliseconds above 0"),
        (["--slo-ms", "nan"], "--slo-ms: got nan, must be a finite number of milliseconds above 0"),
        (["--slo-ms", "5", "--rates", "1,2"], "--rates: got '1,2', must be one rate beside --slo-ms"),
        (["--slo-ms", "5", "--deadline-ms", "2"], "--deadline-ms: got 2.0, must not be given beside --slo-ms"),
        (["--bodies", "none"], "--bodies: got 'none', must be a file that exists"),
        (["--template", "image.bin"], "--template: got 'image.bin', must be a text in UTF-8"),
        (["--template", "body.txt"], "--template: got 'no numbers', must hold $ROW"),
        (["--template", "body.txt", "--bodies", "body.txt"], "must not be given beside --bodies"),
        (["--header", "a: \u00fc"], "--header: got 'a', must be ASCII on one line"),
    ],
)
def test_what_is_wrong_is_named(options: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image.bin").write_bytes(b"\xff\xfe$ROW")
    (tmp_path / "body.txt").write_text("no numbers")
    done = runner.invoke(app, ["http://127.0.0.1:1/", *options])
    assert done.exit_code == 2, done.exception
    assert told in done.stderr


def test_tls_is_told_of() -> None:
    assert "TLS is not spoken" in runner.invoke(app, ["https://127.0.0.1:1/"]).stderr
