"""`vitok load` against small servers: a stall is seen by all who were due in it, and every kind of end is counted."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from vitok.errors import InvalidInput, ServiceError
from vitok.serving.load import Target, run_load, varied
from vitok.serving.load_search import highest_rate, holds

SERVER = """
import asyncio, sys
replies = [bytes(part, "latin-1").decode("unicode_escape").encode("latin-1") for part in sys.argv[1:]]
count = 0
class Line(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.data = transport, b""
    def data_received(self, data):
        global count
        self.data += data
        while (end := self.data.find(b"\\r\\n\\r\\n")) >= 0:
            length = 0
            for line in self.data[:end].split(b"\\r\\n"):
                if line.startswith(b"content-length: "):
                    length = int(line[16:])
            if len(self.data) < end + 4 + length:
                return
            self.data = self.data[end + 4 + length:]
            self.transport.write(replies[count % len(replies)])
            count += 1
async def main():
    server = await asyncio.get_running_loop().create_server(Line, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
OK = r"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = r"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n3;a=b\r\nyes\r\n0\r\nx: y\r\n\r\n"
BUSY = r"HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"
MANY = r"HTTP/1.1 429 Many\r\ncontent-length: 0\r\n\r\n"


@contextlib.contextmanager
def server(*replies: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen([sys.executable, "-c", SERVER, *replies], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, f"http://127.0.0.1:{int(process.stdout.readline())}/x"
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        process.stdout.close()


def test_constant_rate_sends_what_is_due() -> None:
    with server(OK) as (_, url):
        report = run_load(Target(url=url, bodies=[b"{}"]), rate=500, seconds=0.4, poisson=False, connections=4)
    assert report.offered == report.answered == report.in_time == 200
    assert (report.failed, report.broken, report.timed_out) == (0, 0, 0)
    assert report.latency.count == report.lateness.count == 200
    assert "500/s offered" in str(report)
    assert report.to_dict()["statuses"] == {"200": 200}


def test_poisson_count_is_near_its_mean() -> None:
    with server(OK) as (_, url):
        report = run_load(Target(url=url), rate=1_000, seconds=0.4, connections=8)
    # Six standard deviations of a Poisson count of mean 400.
    assert abs(report.offered - 400) < 120


def test_a_stall_is_seen_by_all_who_were_due_in_it() -> None:
    with server(OK) as (process, url):
        stop = threading.Timer(0.3, os.kill, (process.pid, signal.SIGSTOP))
        go_on = threading.Timer(0.8, os.kill, (process.pid, signal.SIGCONT))
        stop.start()
        go_on.start()
        report = run_load(Target(url=url), rate=400, seconds=1.6, connections=2, poisson=False)
        stop.join()
        go_on.join()
    assert report.failed == 0
    # 0.5 s of 1.6 s stood still: the wait of the 0.99 quantile is the longest but 3 % of the stall.
    assert report.latency.quantile(0.99) > 400_000
    # From the real send on, only one request a connection has seen it.
    assert report.service.quantile(0.98) < 200_000
    assert report.starved > 100
    assert any("free connection" in warning for warning in report.warnings)


def test_a_second_of_standing_still_is_the_last_thousandth() -> None:
    with server(OK) as (process, url):
        moments = [(0.2, signal.SIGSTOP), (1.2, signal.SIGCONT)]
        timers = [threading.Timer(after, os.kill, (process.pid, what)) for after, what in moments]
        for timer in timers:
            timer.start()
        report = run_load(Target(url=url), rate=1_000, seconds=2.4, connections=2, poisson=False)
        for timer in timers:
            timer.join()
    found = report.quantile(0.999)
    assert report.failed == 0
    # All that were due in that second waited for its end; two of them, one a connection, had been sent before.
    assert 0.9e6 < found.low <= found.us <= found.high
    assert report.service.quantile(0.99) < 0.5e6
    # A closed loop of two connections would have sent two requests in that second, and called it 0.1 %.
    assert (report.latency.count, report.service.count) == (2_400, 2_400)
    described = report.to_dict()["latency_us"]
    assert described["p99.9"][0] == found.us


def test_refusals_are_counted_by_status_and_do_not_count_as_good() -> None:
    with server(OK, BUSY, MANY, OK) as (_, url):
        report = run_load(Target(url=url), rate=400, seconds=0.5, connections=1, poisson=False)
    assert {status: item.count for status, item in report.by_status.items()} == {200: 100, 429: 50, 503: 50}
    assert (report.in_time, report.failed, report.unasked) == (100, 100, 50)


def test_late_answers_are_not_good() -> None:
    with server(OK) as (_, url):
        report = run_load(Target(url=url), rate=200, seconds=0.2, connections=2, deadline=1e-9)
    assert report.in_time == 0
    assert report.failed == 0


def test_chunked_replies_are_read_to_their_end() -> None:
    with server(CHUNKED) as (_, url):
        report = run_load(Target(url=url), rate=200, seconds=0.2, connections=2, poisson=False)
    assert report.answered == 40
    assert report.broken == 0


def test_closed_loop_keeps_all_connections_busy() -> None:
    with server(OK) as (_, url):
        report = run_load(Target(url=url, bodies=[b"{}"]), rate=None, seconds=0.3, connections=4)
    assert report.rate is None
    assert report.offered == report.answered > 100
    assert "closed loop" in str(report)


def test_two_processes_are_one_report() -> None:
    with server(OK) as (_, url):
        report = run_load(Target(url=url), rate=200, seconds=0.2, connections=3, poisson=False, processes=2)
    assert (report.offered, report.processes, report.rate) == (40, 2, 200)


def test_a_server_that_dies_is_told_of() -> None:
    with server(OK) as (process, url):
        end = threading.Timer(0.2, process.kill)
        end.start()
        report = run_load(Target(url=url), rate=200, seconds=0.5, connections=2, poisson=False, timeout=0.3)
        end.join()
    assert report.offered == 100
    assert 0 < report.answered < 60
    assert report.failed == report.broken + report.timed_out == 100 - report.answered
    # None is left out of the latency: what was never answered has waited until it was given up.
    assert report.latency.count == 100


def test_a_server_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        report = run_load(Target(url=url), rate=50, seconds=0.2, connections=2, poisson=False, timeout=0.1)
    assert report.answered == 0
    assert report.timed_out == report.failed == 10


def test_what_is_no_http_breaks_its_connection() -> None:
    with server(r"hello\r\n\r\n") as (_, url):
        report = run_load(Target(url=url), rate=50, seconds=0.2, connections=1, poisson=False)
    assert report.broken == report.failed == 10


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ServiceError, match="no connection"):
        run_load(Target(url=f"http://127.0.0.1:{port}/"), rate=10, seconds=0.1)


def test_highest_rate_stops_where_the_limit_is_broken() -> None:
    with server(OK) as (_, url):
        none = highest_rate(Target(url=url), limit_us=1e-3, low=100, seconds=0.1, connections=2)
        some = highest_rate(Target(url=url), limit_us=1e9, low=100, high=400, seconds=0.3, connections=4)
    assert len(none) == 1
    assert not holds(none[0], limit_us=1e-3)
    assert some[0].rate == 100


@pytest.mark.parametrize("url", ["", "https://a/b", "http://", "http://a b/", "http://a:99999/", "a:1/x"])
def test_wrong_addresses(url: str) -> None:
    with pytest.raises(InvalidInput, match="url"):
        Target(url=url)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("rate", {"rate": 0.0}),
        ("seconds", {"seconds": 0.0}),
        ("connections", {"connections": 0}),
        ("processes", {"processes": 0}),
        ("deadline", {"deadline": -1.0}),
    ],
)
def test_wrong_numbers(field: str, options: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=field):
        run_load(Target(url="http://127.0.0.1:1/"), **{"rate": 1.0, "seconds": 1.0, **options})  # type: ignore[arg-type]


def test_varied_bodies_differ() -> None:
    bodies = varied('{"d":[$ROW]}', width=3, n=50)
    assert len(set(bodies)) == 50
    with pytest.raises(InvalidInput, match=r"\$ROW"):
        varied("{}", width=3)


def test_a_large_body_is_sent_in_parts() -> None:
    with server(OK) as (_, url):
        began = time.monotonic()
        report = run_load(
            Target(url=url, bodies=[b"x" * 8_000_000]), rate=10, seconds=0.2, connections=1, poisson=False
        )
    assert report.answered == 2
    assert time.monotonic() - began < 9
