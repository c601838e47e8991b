"""The commands that compute, keep, serve and forget features, on real files and in processes of their own."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import polars as pl
import pytest
from tests.engines.servers import Server, make_topic, mock_kafka, until
from typer.testing import CliRunner, Result

from vitok.console.definition_files import load_feature_sets
from vitok.console.feature_commands import app as commands
from vitok.console.feature_work import app
from vitok.engines import LmdbStore, Outgoing, publish
from vitok.features import FeatureReader, FeatureSet, OnlineFeatures
from vitok.features.live import windows_of

OWN = """
import numpy as np
from vitok.features import ArrayIndex, Count, Embedding, Entity, FeatureSet, Latest, Mean, OnDemand, Source, View
CARD = Entity("card", "card_id")
PAYMENTS = Source("payments", "payment_id")
SPEND = View(name="card", entity=CARD, source=PAYMENTS, aggregations=(Count(("1h", "7d")), Mean("amount", "7d")))
LIMITS = Latest(name="limit", entity=CARD, source=Source("limits", location="{limits}"), columns=("amount",))
FEATURES = FeatureSet(
    request=("amount",),
    views=(SPEND, LIMITS),
    on_demand=(OnDemand("of_limit", lambda amount, limit_amount: amount / limit_amount),),
)
"""
MORE = """
VECTORS = Embedding(name="vector", entity=CARD, index="cards", index_version="1", dimension=2)
INDEXES = {"cards@1": ArrayIndex(["7"], np.array([[1.0, 2.0]]))}
EMBEDDED = FeatureSet(views=(VECTORS,))
"""
CONTRACT = """
apiVersion: v3.1.0
kind: DataContract
id: payments
version: 1.0.0
status: active
schema:
  - name: payments
    properties:
      - {name: payment_id, logicalType: string, required: true, primaryKey: true}
      - {name: event_time, logicalType: timestamp, required: true}
      - {name: card_id, logicalType: string, required: true}
      - {name: shop_id, logicalType: string, required: true}
      - {name: amount, logicalType: number, required: true, logicalTypeOptions: {minimum: 0}}
"""
COMMAND = [sys.executable, "-c", "from vitok.console.feature_work import app; app()"]
PATIENCE = 30.0


def at(*texts: str) -> pl.Series:
    return pl.Series(texts).str.to_datetime("%Y-%m-%dT%H:%M", time_unit="us", time_zone="UTC")


def payments() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "payment_id": ["a", "b", "c"],
            "event_time": at("2026-01-01T10:00", "2026-01-01T10:20", "2026-01-02T10:40"),
            "card_id": ["7", "7", "8"],
            "amount": [10.0, 30.0, 20.0],
        }
    )


def message(payment: str, moment: str, card: object, amount: object, shop: object = "s") -> Outgoing:
    row = {"payment_id": payment, "event_time": moment, "card_id": card, "amount": amount, "shop_id": shop}
    return Outgoing(str(card).encode(), json.dumps(row).encode())


def messages() -> list[Outgoing]:
    moments = payments()["event_time"].dt.to_string("%Y-%m-%dT%H:%M:%SZ")
    rows = payments().drop("event_time").iter_rows()
    return [
        message(payment, moment, card, amount) for (payment, card, amount), moment in zip(rows, moments, strict=True)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    payments().write_parquet("payments.parquet")
    limits = {"card_id": ["7", "8"], "event_time": at("2026-01-01T09:00", "2026-01-01T09:00"), "amount": [100.0, 50.0]}
    pl.DataFrame(limits).write_parquet("limits.parquet")
    asked = {"event_time": at("2026-01-02T10:50", "2026-01-01T10:10"), "card_id": ["8", "7"], "amount": [1.0, 2.0]}
    pl.DataFrame(asked).write_parquet("spine.parquet")
    Path("own.py").write_text(OWN.replace("{limits}", str(tmp_path / "limits.parquet")))
    Path("more.py").write_text(OWN.replace("{limits}", str(tmp_path / "limits.parquet")) + MORE)
    Path("contract.yaml").write_text(CONTRACT)
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(item) for item in arguments])


def good(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object, code: int = 2) -> str:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    return result.stderr


# Tables and the store


def test_table(folder: Path) -> None:
    told = good(
        "table",
        "--definitions",
        "own.py",
        "--spine",
        "spine.parquet",
        "--source",
        "payments=payments.parquet",
        "--out",
        "t.parquet",
    )
    assert told.startswith("t.parquet: 2 rows with 6 features ")
    rows = pl.read_parquet("t.parquet")
    assert rows["card_count_7d"].to_list() == [1.0, 1.0]
    assert rows["of_limit"].to_list() == [0.02, 0.02]
    payments().write_csv("payments.csv")
    told = good(
        "table", "--definitions", "own.py:FEATURES", "--spine", "spine.parquet", "--source", "payments=payments.csv",
        "--out", "u.parquet", "--json",
    )  # fmt: skip
    assert json.loads(told)["rows"] == 2
    assert pl.read_parquet("u.parquet").equals(rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--definitions", "none.py"], "file of definitions 'none.py' does not exist; there is: more.py, own.py"),
        (["--definitions", "own.py:NONE"], "feature set in own.py 'NONE' does not exist; there is: FEATURES"),
        (["--definitions", "more.py"], "name one of them. Write FILE:EMBEDDED."),
        (
            ["--definitions", "own.py"],
            "must hold payments. Source 'payments' has no location: write --source payments=",
        ),
        (["--definitions", "own.py", "--source", "payments"], "--source: got 'payments', must look like NAME=VALUE"),
        (
            ["--definitions", "own.py", "--source", "labels=x"],
            "--source: got 'labels', must name one of payments, limits",
        ),
        (
            ["--definitions", "own.py", "--source", "payments=none.parquet"],
            "got 'none.parquet', must be a file of Parquet or CSV",
        ),
        (["--definitions", "own.py", "--source", "payments=limits.parquet"], "source 'payments': columns"),
        (
            ["--definitions", "own.py", "--source", "payments=payments.parquet", "--memory-limit", "much"],
            "memory_limit",
        ),
    ],
)
def test_table_says_what_is_wrong(folder: Path, arguments: list[str], words: str) -> None:
    assert words in refused("table", "--spine", "spine.parquet", "--out", "t.parquet", *arguments)
    assert not Path("t.parquet").exists()


def test_table_wants_a_parquet_file(folder: Path) -> None:
    own = ["--definitions", "own.py", "--spine", "spine.parquet", "--source", "payments=payments.parquet"]
    assert "end in .parquet" in refused("table", *own, "--out", "t.csv")
    assert "in a folder that exists" in refused("table", *own, "--out", "none/t.parquet")


def test_materialise_and_read(folder: Path) -> None:
    own = ["--definitions", "own.py", "--store", f"lmdb://{folder}/rows"]
    sources = ["--source", "payments=payments.parquet"]
    told = good("materialise", *own, *sources, "--until", "2026-01-02T12:00")
    assert "card: 2 rows written of 2 entities" in told
    assert "limit: 2 rows written of 2 entities" in told
    again = json.loads(good("materialise", *own, *sources, "--view", "limit", "--json", "--until", "2026-01-03"))
    assert [(view["view"], view["written"]) for view in again["views"]] == [("limit", 0)]
    read = [*own, "--request", "amount=5", "--at", "2026-01-02T10:50"]
    told = good("read", *read, "--key", "card_id=8")
    assert told.splitlines()[0] == "card_id 8 at 2026-01-02T10:50:00Z: fresh from store"
    cells = {line.split()[0]: line.split()[1:] for line in told.splitlines()[2:]}
    assert cells["card_count_1h"] == ["1", "card", "fresh", "store", "2026-01-02T10:40:00Z,", "10", "min", "before"]
    assert cells["of_limit"] == ["0.1", "function"]
    found = json.loads(good("read", *read, "--key", "card_id=8", "--key", "card_id=nobody", "--json"))
    one, nobody = found["vectors"]
    assert one["values"]["card_amount_mean_7d"] == 20.0
    assert one["views"]["limit"] == {"event_time": "2026-01-01T09:00:00Z", "status": "fresh", "source": "store"}
    assert nobody["keys"] == {"card_id": "nobody"}
    assert nobody["values"]["limit_amount"] is None
    assert nobody["views"]["card"]["status"] == "missing"


def test_embeddings_come_from_the_file_of_definitions(folder: Path) -> None:
    own = ["--definitions", "more.py:EMBEDDED", "--store", f"lmdb://{folder}/rows"]
    assert "vector: 1 rows written of 1" in good("materialise", *own)
    assert json.loads(good("read", *own, "--key", "card_id=7", "--json"))["vectors"][0]["values"]["vector_1"] == 2.0
    assert load_feature_sets("own.py").indexes == {}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["read", "--key", "card=7"], "keys: got ['card'], must hold card_id"),
        (["read", "--key", "card_id"], "--key: got 'card_id', must look like NAME=VALUE"),
        (["read", "--key", "card_id=7"], "request: got [], must hold amount"),
        (["read", "--key", "card_id=7", "--request", "amount=much"], "--request: got 'amount=much', must be a number"),
        (["read", "--key", "card_id=7", "--request", "amount=1", "--at", "noon"], "time: got 'noon', must be ISO 8601"),
        (["materialise", "--view", "shop"], "--view: got 'shop', must name one of card, limit"),
        (["materialise", "--until", "2999-01-01", "--view", "limit"], "not after the present"),
        (["materialise", "--every", "1m", "--until", "2026-01-01", "--view", "limit"], "come without --until"),
        (["forget", "--entity", "shop", "--key", "shop_id=1"], "entity: got 'shop', must be one of card"),
        (["forget", "--entity", "card", "--key", "shop_id=1"], "key: got ['shop_id'], must be by column: card_id"),
        (["forget", "--entity", "card", "--key", "card_id=1", "--key", "card_id=2"], "name card_id once"),
        (
            ["forget", "--entity", "card", "--key", "card_id=1", "--state", "none"],
            "--state: got 'none', must be a folder",
        ),
        (
            ["forget", "--entity", "card", "--key", "card_id=1", "--source", "shops=x"],
            "must name one of limits, payments",
        ),
    ],
)
def test_what_is_wrong_is_said(folder: Path, command: list[str], words: str) -> None:
    (folder / "rows").mkdir()
    assert words in refused(*command, "--definitions", "own.py", "--store", f"lmdb://{folder}/rows")


@pytest.mark.parametrize("command", [("read",), ("forget", "--entity", "card")])
def test_a_store_that_was_never_filled_is_not_asked(folder: Path, command: tuple[str, ...]) -> None:
    told = refused(*command, "--key", "card_id=1", "--definitions", "own.py", "--store", "lmdb://mistyped")
    assert "--store: got 'lmdb://mistyped', must be a folder that exists" in told
    assert not (folder / "mistyped").exists()


def test_a_store_that_is_down_is_said(folder: Path) -> None:
    own = ["--definitions", "own.py", "--store", "redis://127.0.0.1:1/0?timeout_ms=100", "--key", "card_id=7"]
    assert "the store could not be read" in refused("read", *own, "--request", "amount=1")
    assert "look like lmdb://folder" in refused("read", *own[:2], "--store", "rows", *own[4:], "--request", "amount=1")


def test_forget_prints_the_proof(folder: Path) -> None:
    own, url = ["--definitions", "own.py", "--store", f"lmdb://{folder}/rows"], "memory://console-forget"
    good("materialise", *own, "--source", "payments=payments.parquet", "--until", "2026-01-02T12:00")
    publish(url, messages())
    good(
        "follow",
        "--definitions",
        "own.py",
        "--source",
        "payments",
        "--stream",
        url,
        "--state",
        "state",
        "--until-idle",
        "1s",
    )
    subject = ["forget", *own, "--entity", "card", "--key", "card_id=7", "--source", "payments=payments.parquet"]
    told = good(*subject, "--state", "state")
    assert ": 2 rows online, 1 held elsewhere, 2 rows in 1 of 1 files; refused for ever" in told
    assert "payments.parquet: 3 rows before, 1 after" in told
    assert f"not looked into: limits at {folder}/limits.parquet" in told
    again = json.loads(good(*subject, "--state", "state", "--source", "limits=limits.parquet", "--json"))
    assert (again["rows_online"], again["held_elsewhere"], again["rows_offline"]) == (0, 0, 1)
    assert again["not_looked_into"] == []
    assert "card_id" in pl.read_parquet("payments.parquet").columns
    assert good(
        "materialise",
        *own,
        "--source",
        "payments=payments.parquet",
        "--since",
        "2026-01-01",
        "--until",
        "2026-01-02T12:00",
    )
    found = json.loads(
        good("read", *own, "--key", "card_id=7", "--request", "amount=1", "--at", "2026-01-02T12:00", "--json")
    )
    assert {view["status"] for view in found["vectors"][0]["views"].values()} == {"missing"}


def test_flink(folder: Path) -> None:
    told = good("flink", "--definitions", "own.py", "--stream", "payments=kafka://localhost:9092/payments")
    assert "CREATE TABLE `payments`" in told
    assert "`amount` DOUBLE" in told
    more = ["--type", "payments.amount=DECIMAL(10, 2)", "--sink", "kafka://localhost:9092/tiles", "--out", "job.sql"]
    assert "wrote job.sql" in good(
        "flink", "--definitions", "own.py", "--stream", "payments=kafka://localhost:9092/payments", *more
    )
    assert "`amount` DECIMAL(10, 2)" in Path("job.sql").read_text()
    assert "say where its stream is" in refused("flink", "--definitions", "own.py")
    assert "must name one of payments" in refused("flink", "--definitions", "own.py", "--stream", "labels=kafka://h/t")
    assert "look like SOURCE.COLUMN=TYPE" in refused("flink", "--definitions", "own.py", "--type", "amount=BIGINT")


# Streams


def test_follow_behind_a_contract(folder: Path) -> None:
    url = "memory://console-contract"
    publish(
        url,
        [
            *messages(),
            message("d", "2026-01-02T10:45:00Z", "8", -1.0),
            message("e", "2026-01-02T10:45:00Z", "8", 5.0, shop=None),
            message("f", "2026-01-02T10:46:00Z", "8", "much"),
            message("a", "2026-01-01T10:00:00Z", "7", 10.0),
            message("g", "2999-01-01T10:00:00Z", "7", 10.0),
        ],
    )
    own = ["--definitions", "own.py", "--source", "payments", "--stream", url, "--state", "state"]
    told = json.loads(good("follow", *own, "--contract", "contract.yaml", "--until-idle", "1s", "--json"))
    assert (told["n_messages"], told["n_new"], told["n_rejected"]) == (8, 3, 5)
    assert told["newest_event"] == "2026-01-02T10:40:00Z"
    kept = [json.loads(line)["reason"] for line in Path(told["rejected_file"]).read_text().splitlines()]
    assert kept == [
        "amount: got 'much', must be a number",
        "amount: got -1.0, must be at least 0",
        "shop_id: got null, must be given and not null",
        "payment_id: got 'a', must be unique; the first row with it is kept",
        *[reason for reason in kept if "future" in reason],
    ]
    publish(url, [message("a", "2026-01-01T10:00:00Z", "7", 10.0), message("h", "2026-01-02T10:50:00Z", "8", 1.0)])
    told = good("follow", *own, "--contract", "contract.yaml", "--until-idle", "1s")
    assert told.startswith("2 messages: 1 new, 0 seen before, 0 late, 1 rejected; newest event 2026-01-02T10:50:00Z")
    assert "what was rejected is in state/payments/rejected.jsonl" in told
    assert "does not exist" in refused("follow", *own, "--contract", "contract.yaml", "--table", "none")


def test_follow_says_what_is_wrong(folder: Path) -> None:
    own = ["--definitions", "own.py", "--stream", "memory://console-wrong", "--state", "state"]
    assert "be one that views of windows read: payments" in refused("follow", *own, "--source", "limits")
    assert "look like kafka://" in refused("follow", *own[:2], "--stream", "x", *own[4:], "--source", "payments")
    assert "be us, ms or s" in refused("follow", *own, "--source", "payments", "--time-unit", "ns")
    shutil.rmtree("state")
    Path("state").write_text("")
    assert "cannot be opened" in refused("follow", *own, "--source", "payments")


@pytest.fixture(scope="module")
def broker() -> Iterator[Server]:
    with mock_kafka() as server:
        yield server


class Running:
    """A command in a process of its own."""

    def __init__(self, *arguments: object) -> None:
        command = [*COMMAND, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def line(self) -> dict[str, object]:
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        assert text, self.process.stderr and self.process.stderr.read()
        return json.loads(text)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, errors


def test_follow_in_a_process_survives_a_kill_and_stops_in_order(folder: Path, broker: Server) -> None:
    url, rows = make_topic(broker, "follow-payments"), f"lmdb://{folder}/published"
    publish(url, messages())
    own = ["--definitions", "own.py", "--source", "payments", "--stream", url, "--state", "state", "--publish", rows]
    spend = FeatureSet(views=load_feature_sets("own.py").sets["FEATURES"].windowed)
    reader, moment = FeatureReader(spend, rows), int(at("2026-01-02T11:00").to_physical()[0])

    def count(card: str) -> float:
        return float(reader.read({"card_id": [card]}, time=moment).values[0, 1])

    with Running("follow", *own) as follower:
        until(lambda: count("7") == 2)
        assert follower.stop(signal.SIGKILL)[0] == -signal.SIGKILL
    publish(url, [message("d", "2026-01-02T10:50:00Z", "8", 1.0)])
    with Running("follow", *own, "--json") as follower:
        until(lambda: count("8") == 2)
        code, out, errors = follower.stop()
    assert code == 0
    assert json.loads(out)["n_messages"] == 1
    assert json.loads(out)["newest_event"] == "2026-01-02T10:50:00Z"
    assert "following payments into state/payments" in errors
    store = LmdbStore("state/payments/windows")
    online = OnlineFeatures(windows_of([spend], "payments"), store, journal=True)
    assert online.recovered_events == 0
    assert sum(online.positions().values()) == 4
    store.close()
    reader.close()


def test_a_service_whose_stream_is_gone_ends(folder: Path) -> None:
    with mock_kafka() as broker:
        own = ["--definitions", "spend.py", "--stream", make_topic(broker, "gone"), "--state", "state"]
        Path("spend.py").write_text(Path("own.py").read_text() + "FEATURES = FeatureSet(views=(SPEND,))\n")
        with Running("serve", *own, "--port", "0", "--patience", "1s", "--json") as service:
            found = service.line()
            assert httpx.get(f"{found['http']}/healthz", timeout=PATIENCE).status_code == 200
            broker.process.kill()
            _, errors = service.process.communicate(timeout=PATIENCE)
    assert service.process.returncode == 2
    assert "trying again" in errors
    assert "the service has ended, since a stream failed" in errors


def test_serve_follows_a_stream_and_answers_over_http_and_grpc(folder: Path, broker: Server) -> None:
    grpc = pytest.importorskip("grpc")
    from vitok.serving import feature_grpc

    url, rows = make_topic(broker, "serve-payments"), f"lmdb://{folder}/rows"
    good("materialise", "--definitions", "own.py", "--store", rows, "--view", "limit")
    own = ["--definitions", "own.py", "--store", rows, "--stream", f"payments={url}", "--state", "state"]
    asked = {"keys": {"card_id": ["7", "8"]}, "request": {"amount": 5}, "time": "2026-01-02T11:00:00Z", "details": True}
    with Running("serve", *own, "--port", "0", "--grpc-port", "0", "--json") as service:
        found = service.line()
        path = str(found["paths"][0])  # type: ignore[index]
        with httpx.Client(base_url=str(found["http"]), timeout=PATIENCE) as client:
            before = client.post(path, json=asked).json()
            assert before["values"][0] == [5.0, 0.0, 0.0, None, 100.0, 0.05]
            publish(url, messages())
            until(lambda: client.post(path, json=asked).json()["values"][1][2] == 1.0)
            until(lambda: client.post(path, json=asked).json()["values"][0][2] == 2.0)
            answer = client.post(path, json=asked).json()
            assert answer["values"] == [[5.0, 0.0, 2.0, 20.0, 100.0, 0.05], [5.0, 1.0, 1.0, 20.0, 50.0, 0.1]]
            assert answer["views"]["card"]["source"] == ["store", "store"]
            stands = client.get("/readyz")
            assert stands.status_code == 200
            assert stands.json()["streams"]["payments"]["behind_s"] < 60
            assert stands.json()["served"]["failed"] == 0
            assert client.get("/v1/features/FEATURES").json()["keys"] == ["card_id"]
        kinds = feature_grpc.messages()
        with grpc.insecure_channel(str(found["grpc"])) as channel:
            call = channel.unary_unary(
                f"/{feature_grpc.SERVICE}/GetVectors",
                request_serializer=kinds["GetVectorsRequest"].SerializeToString,
                response_deserializer=kinds["GetVectorsResponse"].FromString,
            )
            request = kinds["GetVectorsRequest"](
                feature_set="FEATURES",
                keys=[{"name": "card_id", "keys": ["8"]}],
                request=[{"name": "amount", "numbers": [5.0]}],
                times=[int(at("2026-01-02T11:00").to_physical()[0])],
            )
            assert list(call(request, timeout=PATIENCE).values) == [5.0, 1.0, 1.0, 20.0, 50.0, 0.1]
        code, _, errors = service.stop()
    assert (code, errors) == (0, "")
    assert (folder / ".vitok" / "fraud" / "served" / "data.mdb").is_file()
    # What was followed is there at once after a new start, whatever the topic still holds.
    shutil.rmtree(folder / ".vitok")
    with Running("serve", *own, "--port", "0", "--json", "--no-sketches") as service:
        found = service.line()
        answer = httpx.post(f"{found['http']}{path}", json=asked, timeout=PATIENCE).json()
        assert answer["values"][0][2] == 2.0
        assert found["grpc"] is None
        code, _, _ = service.stop(signal.SIGINT)
    assert code == 0
    assert not (folder / ".vitok").exists()


def test_a_service_that_is_behind_says_so(folder: Path) -> None:
    Path("spend.py").write_text(Path("own.py").read_text() + "FEATURES = FeatureSet(views=(SPEND,))\n")
    with mock_kafka() as broker:
        own = ["--definitions", "spend.py", "--stream", make_topic(broker, "behind"), "--state", "state"]
        with Running("serve", *own, "--port", "0", "--grpc-port", "0", "--most-behind", "1s", "--json") as service:
            found = service.line()
            until(lambda: httpx.get(f"{found['http']}/readyz", timeout=PATIENCE).status_code == 200)
            broker.process.kill()
            until(lambda: httpx.get(f"{found['http']}/readyz", timeout=PATIENCE).status_code == 503)
            (reason,) = httpx.get(f"{found['http']}/readyz", timeout=PATIENCE).json()["reasons"]
    assert reason.startswith("payments is ")
    assert "s behind" in reason
    assert "more than 1 s" in reason


def test_what_was_served_is_shown(folder: Path) -> None:
    rows, home = f"lmdb://{folder}/rows", ["--home", "home"]
    own = ["--definitions", "own.py", "--store", rows]
    good("materialise", *own, "--source", "payments=payments.parquet", "--until", "2026-01-02T12:00")
    asked = {"keys": {"card_id": ["7", "nobody"]}, "request": {"amount": 5}, "time": "2026-01-02T10:50:00Z"}
    for _ in range(2):
        with Running("serve", *own, *home, "--port", "0", "--json") as service:
            found = service.line()
            path = str(found["paths"][0])  # type: ignore[index]
            for _ in range(3):
                assert httpx.post(f"{found['http']}{path}", json=asked, timeout=PATIENCE).status_code == 200
            assert service.stop()[0] == 0
    told = json.loads(shown("served", *home, "--json").stdout)
    assert [(one["set"], sum(item["vectors"] for item in one["ranges"])) for one in told] == [("FEATURES", 12)]
    (one,) = (item for item in told[0]["ranges"][0]["features"] if item["name"] == "limit_amount")
    assert (one["null_share"], one["mean"], one["std"]) == (0.5, 100.0, 0.0)
    told_text = shown("served", "limit", *home, "--definitions", "own.py", "--by", "1h").stdout
    lines = [line.split() for line in told_text.splitlines()]
    assert lines[0][0] == "FEATURES"
    assert lines[1] == ["from", "feature", "served", "null", "mean", "std", "least", "largest"]
    assert {line[1] for line in lines[2:]} == {"limit_amount", "limit.age_seconds"}
    assert {line[3] for line in lines[2:]} == {"50"}
    assert (
        "nothing was served in that time"
        in shown("served", *home, "--until", "2020-01-02", "--since", "2020-01-01").stderr
    )
    result = shown("show", "limit", *home, "--definitions", "own.py")
    assert "50 %" in result.stdout
    assert "share of 12 vectors that the feature service served in the last 24 hours" in result.stderr
    # Another version of the definitions has served nothing yet.
    Path("own.py").write_text(
        Path("own.py").read_text().replace('columns=("amount",)', 'columns=("amount",), ttl="9d"')
    )
    assert "50 %" not in shown("show", "limit", *home, "--definitions", "own.py").stdout
    for arguments, words in (
        (["nothing"], "view or feature that was served 'nothing' does not exist"),
        (["--by", "90s"], "must be whole hours"),
        (["--since", "2020-01-02", "--until", "2020-01-01"], "must be after"),
    ):
        result = CliRunner().invoke(commands, ["served", *home, "--definitions", "own.py", *arguments])
        assert (result.exit_code, words in result.stderr) == (2, True)


def shown(*arguments: object) -> Result:
    result = CliRunner().invoke(commands, [str(item) for item in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_serve_says_what_is_wrong(folder: Path) -> None:
    own = ["serve", "--definitions", "own.py", "--port", "0"]
    assert "store: got None, must be given: card, limit must be read from one" in refused(*own)
    stream = ["--stream", "memory://console-serve"]
    assert "--state: got None, must name a folder" in refused(*own, *stream)
    assert "must name one of payments" in refused(*own, "--stream", "limits=memory://console-serve", "--state", "state")
    assert "limit must be read from one" in refused(*own, *stream, "--state", "state")
    assert "not have ?group=" in refused(*own, "--stream", "memory://console-serve?group=g", "--state", "state")
    rows = ["--store", "memory://console-rows"]
    assert "be in 0 to 65535" in refused(*own[:3], "--port", "70000", *rows)
    assert "cannot listen on" in refused(*own, "--grpc-port", "0", "--host", "256.0.0.1", *rows)
