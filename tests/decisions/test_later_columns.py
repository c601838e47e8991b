"""Segments that were written before there were `tenant`, `team` and `trace_id`, beside those of today."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from vitok import decisions
from vitok.decisions import DecisionBlock, DecisionLog, LogSchema, Tail
from vitok.decisions.messages import MessageMaker
from vitok.decisions.schema import LATER, decision_message, open_schema
from vitok.decisions.sealing import seal
from vitok.decisions.segments import open_path, sealed_path

Make = Callable[..., DecisionBlock]


def write_old(folder: Path, number: int, block: DecisionBlock, schema: LogSchema, *, sealed: bool) -> None:
    """Writes a segment as it was before those columns."""
    arrow = open_schema(schema)
    message = decision_message(block, schema, MessageMaker(arrow))
    batch = pa.ipc.read_record_batch(pa.py_buffer(message), arrow).drop_columns(list(LATER))
    path = open_path(folder, number)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, batch.schema) as stream:
        stream.write_batch(batch)
    if sealed:
        seal(path, sealed_path(folder, number))


@pytest.mark.parametrize("sealed", [True, False])
def test_rows_of_old_segments_have_nulls(tmp_path: Path, schema: LogSchema, make_block: Make, sealed: bool) -> None:
    folder = tmp_path / "decisions"
    folder.mkdir()
    write_old(folder, 1, make_block(0, 2), schema, sealed=sealed)
    alone = decisions.read(folder, columns=["request_id", "tenant"])
    assert alone.rows() == [("r0", None), ("r1", None)]
    assert set(LATER) <= set(decisions.read(folder).columns)
    tail = Tail(folder)
    assert [row[-3:] for row in tail.read().rows()] == [(None, None, None)] * 2
    log = DecisionLog(folder, schema)
    log.append(make_block(2, 1, tenant=["acme"], trace_id=["ab"]))
    wanted = [("r0", None, None), ("r1", None, None), ("r2", "acme", "")]
    assert decisions.read(folder, columns=["request_id", "tenant", "team"]).rows() == wanted
    assert Tail(folder).read().select("request_id", "tenant", "team").rows() == wanted
    assert tail.read().select("request_id", "tenant", "trace_id").rows() == [("r2", "acme", "ab")]
    assert decisions.query(tmp_path, "SELECT request_id, tenant, team FROM decisions ORDER BY 1").rows() == wanted
    log.close()
    assert decisions.read(folder, columns=["request_id", "tenant", "team"]).rows() == wanted
    old, new = (decisions.find(folder, request_id=name) for name in ("r1", "r2"))
    assert (old.tenant, old.team, old.trace_id) == ("", "", "")
    assert (new.tenant, new.team, new.trace_id) == ("acme", "", "ab")


def test_a_field_of_an_old_log_may_have_such_a_name(tmp_path: Path, make_block: Make) -> None:
    schema = LogSchema("s", ("tenant",), (("team", "float64"),), ("a",))
    assert schema.later == ("trace_id",)
    with DecisionLog(tmp_path, schema) as log:
        log.append(make_block(3, 1, schema))
    assert decisions.read(tmp_path, columns=["tenant", "team", "trace_id"]).rows() == [("tenant-3", 1.5, "")]
    found = decisions.find(tmp_path, request_id="r3")
    assert (found.entities, found.request, found.tenant) == ({"tenant": "tenant-3"}, {"team": 1.5}, "")
