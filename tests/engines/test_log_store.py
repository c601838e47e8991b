"""The conformance suite of log stores: a new engine gets all of it by being listed in `STORES`.

`clickhouse` is ClickHouse itself, as the wheel chdb has it, behind a small server of its HTTP interface. It lives in
an environment of its own, whose interpreter VITOK_CHDB_PYTHON names. What it cannot show: several servers, and TLS.
"""

import contextlib
import datetime as dt
import itertools
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from tests.engines.servers import free_ports, until

from vitok.decision import Outcome
from vitok.decisions import Hold, OutcomeLog, hold, retain
from vitok.decisions.shipping import forget_shipped, ship
from vitok.engines.log_store import LogStore, open_log_store
from vitok.errors import InvalidInput, NotFound, StoreError

STORES = ["duckdb", "clickhouse"]
_numbers = itertools.count()

SERVER = """
import http.server, os, re, sys, tempfile, urllib.parse
from chdb import session
home = tempfile.mkdtemp()
asked = session.Session(home)
asked.query("CREATE DATABASE IF NOT EXISTS kept")
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        given = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        sql, path = given.pop("query", None), None
        asked.query("USE " + given.pop("database"))
        if self.headers["X-ClickHouse-Key"] != "word":
            return self.answer(403, b"Authentication failed")
        if sql is None:
            sql = body.decode()
        else:
            path = os.path.join(home, "given.arrow")
            with open(path, "wb") as file:
                file.write(body)
            sql = re.sub("FORMAT ArrowStream$", f"SELECT * FROM file('{path}', 'ArrowStream')", sql)
        form = re.search(r"\\sFORMAT (\\w+)$", sql)
        sql = sql[: form.start()] if form else sql
        settings = ", ".join(f"{name} = {value}" for name, value in given.items() if name != "readonly")
        if given.get("readonly") and not sql.lstrip().upper().startswith("SELECT"):
            return self.answer(500, b"Cannot execute query in readonly mode")
        try:
            sql += " SETTINGS " + settings if settings else ""
            found = asked.query(sql, form[1] if form else "TabSeparated")
            self.answer(200, found.bytes() or b"")
        except Exception as error:
            self.answer(500, str(error).encode())
    def answer(self, code, content):
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture(scope="session")
def clickhouse() -> Iterator[str]:
    program = os.environ.get("VITOK_CHDB_PYTHON", ".venv/clickhouse/bin/python")
    if not Path(program).exists():
        pytest.skip("ClickHouse comes with the wheel chdb, in an environment that VITOK_CHDB_PYTHON names")
    port = free_ports(1)[0]

    def answers() -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    with subprocess.Popen([program, "-c", SERVER, str(port)], env={"PATH": os.environ["PATH"]}) as process:
        try:
            until(answers, process, "the server of chdb")
            yield f"clickhouse://default:word@127.0.0.1:{port}/kept"
        finally:
            process.kill()


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LogStore]:
    url = f"duckdb://{tmp_path / 'log.duckdb'}" if request.param == "duckdb" else request.getfixturevalue("clickhouse")
    opened = open_log_store(url)
    yield opened
    opened.close()
    opened.close()


@pytest.fixture
def table() -> str:
    return f"t{next(_numbers)}"


def rows(n: int, start: int = 0) -> pa.Table:
    time = pa.timestamp("us", tz="UTC")
    numbers = range(start, start + n)
    return pa.table(
        {
            "name": pa.array([None if i % 5 == 3 else f"näme '{i}\\" for i in numbers], pa.string()),
            "score": pa.array([None if i % 7 == 4 else i / 3 for i in numbers], pa.float64()),
            "whole": pa.array([i * 10**12 for i in numbers], pa.int64()),
            "latency": pa.array(list(numbers), pa.int32()),
            "known": pa.array([i % 2 == 0 for i in numbers], pa.bool_()),
            "moment": pa.array([1_772_373_600_000_001 + i for i in numbers], time),
        }
    )


def test_rows_come_back_as_they_were(store: LogStore, table: str) -> None:
    given = rows(50)
    store.put(table, "segment-00000001", given)
    found = store.query(f"SELECT name, score, whole, latency, known, moment FROM {table} ORDER BY latency")
    assert found.to_pylist() == given.to_pylist()
    assert store.query(f"SELECT count(*) AS n FROM {table} WHERE name IS NULL").to_pylist() == [{"n": 10}]
    moment = store.query(f"SELECT max(moment) AS last FROM {table}").to_pylist()[0]["last"]
    assert moment == dt.datetime(2026, 3, 1, 14, 0, 0, 50, tzinfo=dt.UTC)


def test_a_segment_is_there_once_and_is_replaced(store: LogStore, table: str) -> None:
    for _ in range(2):
        store.put(table, "segment-00000001", rows(10))
        store.put(table, "segment-00000002", rows(5, 10))
    count = f"SELECT _segment AS s, count(*) AS n FROM {table} GROUP BY _segment ORDER BY s"
    assert [row["n"] for row in store.query(count).to_pylist()] == [10, 5]
    store.put(table, "segment-00000001", rows(3))
    assert [row["n"] for row in store.query(count).to_pylist()] == [3, 5]
    store.put(table, "segment-00000001", rows(0))
    assert [tuple(row.values()) for row in store.query(count).to_pylist()] == [("segment-00000002", 5)]


def test_columns_come_and_go(store: LogStore, table: str) -> None:
    store.put(table, "a", pa.table({"x": [1.0], "old": ["o"]}))
    store.put(table, "b", pa.table({"new": [7], "x": [2.0]}))
    found = store.query(f"SELECT x, old, new FROM {table} ORDER BY x").to_pylist()
    assert found == [{"x": 1.0, "old": "o", "new": None}, {"x": 2.0, "old": None, "new": 7}]
    with pytest.raises(InvalidInput, match="column x"):
        store.put(table, "c", pa.table({"x": ["text"]}))
    assert store.query(f"SELECT count(*) AS n FROM {table}").to_pylist() == [{"n": 2}]


def test_wrong_input(store: LogStore, table: str) -> None:
    one = pa.table({"x": [1.0]})
    for call, field in (
        (lambda: store.put("a; DROP", "s", one), "table"),
        (lambda: store.put(table, "s' OR 1=1", one), "segment"),
        (lambda: store.put(table, "s", pa.table({"x`": [1.0]})), "column"),
        (lambda: store.put(table, "s", pa.table({"_segment": ["a"]})), "column"),
        (lambda: store.put(table, "s", pa.table({"x": [b"bytes"]})), "column x"),
        (lambda: store.query("SELECT nothing FROM nowhere"), "sql"),
        (lambda: store.query("DROP TABLE nowhere"), "sql"),
    ):
        with pytest.raises(InvalidInput, match=field):
            call()


def test_a_log_is_shipped_once_and_followed(store: LogStore, table: str, tmp_path: Path) -> None:
    day = 86_400_000_000
    folder = tmp_path / "outcomes"

    def outcome(number: int) -> Outcome:
        moment = (number + 1) * day
        return Outcome(request_id=f"r{number}", kind="fraud", value=1.0, event_time=moment, ingest_time=moment)

    with OutcomeLog(folder) as log:
        for number in range(3):
            log.append([outcome(number), outcome(number + 100)])
            log.seal()
        log.append([outcome(7)])
        # The open segment waits for its sealing.
        assert [ship(folder, store, table) for _ in range(2)] == [3, 0]
    assert ship(folder, store, table) == 1
    names = f"SELECT request_id FROM {table} ORDER BY request_id"

    def shipped() -> list[str]:
        return store.query(names).column(0).to_pylist()

    assert shipped() == ["r0", "r1", "r100", "r101", "r102", "r2", "r7"]
    hold(folder, Hold(name="case", where={"request_id": "r101"}))
    retain(folder, 1, now=103 * day)
    assert ship(folder, store, table) == 1
    assert shipped() == ["r0", "r100", "r101", "r102", "r2", "r7"]
    assert ship(folder, store, table, mirror=True) == 2
    assert shipped() == ["r101", "r102", "r2"]
    with pytest.raises(NotFound):
        ship(tmp_path / "none", store, table)


def test_a_subject_is_forgotten_in_a_store(store: LogStore, table: str) -> None:
    given = rows(50).append_column("_file", pa.repeat("1-1", 50))
    for number in range(3):
        store.put(table, f"segment-{number}", given.slice(number * 10, 10))
    name = given.column("name").to_pylist()[7]
    assert "'" in name
    assert "\\" in name
    store.put(f"{table}_outcomes", "segment-9", pa.table({"request_id": pa.array(["a", None], pa.string())}))
    assert forget_shipped(store, "name", name, decisions=table, outcomes=None) == 1
    assert forget_shipped(store, "name", name, decisions=table, outcomes=None) == 0
    found = store.query(f"SELECT name, score, whole, latency, known, moment FROM {table} ORDER BY latency")
    wanted = [row for row in rows(30).to_pylist() if row["name"] != name]
    assert found.to_pylist() == wanted
    # Its outcomes are those of its requests.
    ids = pa.table({"request_id": pa.array(["a", "b"], pa.string()), "name": pa.array(["x", "y"], pa.string())})
    store.put(f"{table}_asked", "segment-0", ids)
    assert forget_shipped(store, "name", "x", decisions=f"{table}_asked", outcomes=f"{table}_outcomes") == 2
    assert store.query(f"SELECT request_id FROM {table}_outcomes").to_pylist() == [{"request_id": None}]


def test_addresses(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="look like"):
        open_log_store("postgresql://host/db")
    with pytest.raises(StoreError, match="cannot be reached"):
        open_log_store(f"clickhouse://127.0.0.1:{free_ports(1)[0]}/kept")
    (tmp_path / "file").write_text("no database")
    with pytest.raises(StoreError, match="DuckDB file"):
        open_log_store(f"duckdb://{tmp_path / 'file'}")


def test_a_wrong_password(clickhouse: str) -> None:
    with contextlib.suppress(InvalidInput), pytest.raises(StoreError, match="Authentication failed"):
        open_log_store(clickhouse.replace("word", "other"))
