"""Whom the fraud system tells: addresses where they are named, else a file."""

import json
from pathlib import Path

import pytest

from vitok.errors import InvalidInput, NotFound, StoreError
from vitok.monitoring.channels import Alertmanager, AppriseChannel
from vitok.monitoring.outbox import Notice
from vitok.systems.fraud.notices import FILE, NoticeFile, channels

NOTICE = Notice(key="k", kind="raised", severity="critical", title="quality of fraud", body="0.4 against 0.6")


def test_where_nobody_is_named_all_is_kept_in_a_file(tmp_path: Path) -> None:
    made, rules = channels(tmp_path)
    assert {name for route in rules.routes for name in route.channels} == {FILE} == set(made)
    for _ in range(2):
        made[FILE].send(NOTICE)
    lines = (tmp_path / "monitoring" / "notices.jsonl").read_text().splitlines()
    assert [json.loads(line)["title"] for line in lines] == ["quality of fraud"] * 2


def test_who_is_named_hears_of_it_and_the_rest_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("apprise")
    monkeypatch.setenv("PAGER", "json://localhost")
    made, rules = channels(tmp_path, critical=["env:PAGER", "http://alertmanager:9093"])
    by_severity = {route.severity: route.channels for route in rules.routes}
    assert by_severity == {"critical": ("critical-1", "critical-2"), "warning": (FILE,), "info": (FILE,)}
    assert isinstance(made["critical-1"], AppriseChannel)
    assert isinstance(made["critical-2"], Alertmanager)


@pytest.mark.parametrize(
    ("reference", "error"), [("slack://token", InvalidInput), ("env:NOT_SET", NotFound), ("file:/no/such", NotFound)]
)
def test_a_wrong_reference_is_said_at_once_without_what_it_holds(
    tmp_path: Path, reference: str, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        channels(tmp_path, warning=[reference])
    assert "token" not in str(caught.value).replace("tokens", "")


def test_a_file_that_cannot_be_written_keeps_the_message_waiting(tmp_path: Path) -> None:
    (tmp_path / "monitoring").write_text("a file where a folder should be")
    with pytest.raises(StoreError, match="cannot be written"):
        NoticeFile(tmp_path / "monitoring" / "notices.jsonl").send(NOTICE)
