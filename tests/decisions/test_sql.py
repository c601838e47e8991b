"""SQL over both logs; oracle: the same counted with polars."""

import polars as pl
import pytest

from vitok import ids
from vitok.decision import Outcome
from vitok.decisions import DecisionLog, LogSchema, OutcomeLog, query, read
from vitok.errors import InvalidInput, NotFound


@pytest.fixture
def logs(tmp_path, schema, make_block):
    with DecisionLog(tmp_path / "decisions", schema) as log:
        log.append(make_block(0, 10))
    with OutcomeLog(tmp_path / "outcomes") as outcomes:
        outcomes.append([Outcome(request_id="r3", kind="fraud", value=1.0, event_time=5)])
    log = DecisionLog(tmp_path / "decisions", LogSchema("fraud", ("customer_id",), (), ("risk",)))
    log.append(make_block(10, 5, log.schema))
    yield tmp_path
    log.close()


def test_sealed_and_open_rows(logs):
    frame = query(
        logs, "SELECT model_version, count(*) AS n, count(f_risk) AS m FROM decisions GROUP BY ALL ORDER BY ALL"
    )
    assert frame.rows() == [("fraud/1", 7, 2), ("fraud/2", 8, 3)]
    counted = read(logs / "decisions").group_by("model_version").len().sort("model_version")
    assert counted["len"].to_list() == frame["n"].to_list()
    joined = query(logs, "SELECT d.request_id, o.value FROM decisions d JOIN outcomes o USING (request_id)")
    assert joined.rows() == [("r3", 1.0)]


def test_ids_and_times(logs):
    frame = query(logs, "SELECT decision_id, event_time FROM decisions ORDER BY decision_id")
    assert frame["decision_id"].to_list() == [ids.text(one) for one in read(logs / "decisions")["decision_id"]]
    assert frame.schema["event_time"] == pl.Datetime("us", "UTC")


def test_logs_that_are_not_there_yet(tmp_path, schema):
    assert query(tmp_path, "SELECT * FROM decisions").height == 0
    with DecisionLog(tmp_path / "decisions", schema):
        assert query(tmp_path, "SELECT f_mean_1d, amount FROM decisions").height == 0
    assert query(tmp_path, "SELECT * FROM outcomes").columns[0] == "request_id"
    with pytest.raises(NotFound):
        query(tmp_path / "absent", "SELECT 1")


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "SELEC 1",
        "SELECT nothing FROM decisions",
        "SELECT 1; SELECT 2",
        "DROP VIEW decisions",
        "COPY (SELECT 1) TO '{logs}/decisions/segment-00000009.parquet'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '{logs}/elsewhere.csv'",
        "SET enable_external_access = true",
        "ATTACH '{logs}/x.db'",
        "INSTALL httpfs",
    ],
)
def test_statement_refused(logs, sql):
    (logs / "elsewhere.csv").write_text("a\n1\n")
    before = sorted(path.name for path in logs.rglob("*"))
    with pytest.raises(InvalidInput) as caught:
        query(logs, sql.format(logs=logs))
    assert caught.value.field == "sql"
    assert sorted(path.name for path in logs.rglob("*")) == before


def test_folder_with_a_quote(tmp_path, schema, make_block):
    with DecisionLog(tmp_path / "it's" / "decisions", schema) as log:
        log.append(make_block(0, 2))
    assert query(tmp_path / "it's", "SELECT count(*) FROM decisions").item() == 2
