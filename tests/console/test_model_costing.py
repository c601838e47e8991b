"""The meter and the budgets of a service, as its options make them."""

import time
from pathlib import Path

import pytest
from tests.serving.model_folders import ROWS, SUM, put_model

from vitok.console.model_costing import Costing
from vitok.errors import NotFound
from vitok.guard import KeyRing, KeyStore
from vitok.serving import FolderCatalogue, HotRequest, ModelHost, Reply
from vitok.serving.budgets import BudgetBook, SpendingBudget
from vitok.serving.guarded import Guard

BODY = b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2.5]}]}'


def test_budgets_stand_behind_the_keys(tmp_path: Path) -> None:
    put_model(tmp_path / "models", "sum", 1, SUM.format(sleep=0), ROWS)
    now = time.time_ns() // 1000
    store = KeyStore(tmp_path / "keys.sqlite")
    made = store.create("web", tenant="web", team="checkout", scopes=["infer:*"], actor="ann", now=now)
    book = BudgetBook(tmp_path / "budgets.sqlite")
    book.set(SpendingBudget(team="checkout", amount=1.0, period="month"), actor="ann", now=now)
    guard = Guard(keys=KeyRing(store))
    costing = Costing(guard=guard, keys=tmp_path / "keys.sqlite", budgets=tmp_path / "budgets.sqlite")
    catalogue = FolderCatalogue(tmp_path / "models")
    host = ModelHost(catalogue, dress=costing.dress, guard=costing.guard, pinned=["sum"], queue=False)
    host.start()

    def status(*headers: tuple[bytes, bytes]) -> int:
        request = HotRequest(BODY, time.perf_counter_ns(), list(headers))
        reply = host.endpoints["/v2/models/sum/infer"].handle([request])[0]
        assert isinstance(reply, Reply)
        return reply.status

    shown = (b"x-api-key", made.token.encode())
    assert status() == 401
    assert status(shown) == 200
    (line,) = costing.meter.report().charged
    assert (line.version, line.tenant, line.team, line.rows) == ("sum/1", "web", "checkout", 1)
    assert costing.meter.spending is not None
    costing.meter.spending.spend("checkout", 2 * 10**9)
    assert status(shown) == 402
    costing.close()
    assert book.state("checkout", now=now).spent > 2.0
    book.close()
    host.close()


def test_without_budgets_there_is_a_meter_alone(tmp_path: Path) -> None:
    costing = Costing()
    assert costing.guard is None
    assert costing.meter.spending is None
    costing.close()
    with pytest.raises(NotFound):
        Costing(budgets=tmp_path / "nowhere.sqlite")
