"""Records: whole or not there, in order, once for a key, and readable."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.loop import Record, Records, records


def opened(store: Records, **changes: Any) -> Record:
    given: dict[str, Any] = {"system": "fraud", "version": "fraud/2", "now": 5, "why": "drift"}
    return store.open(changes.pop("kind", "release"), changes.pop("title", "canary"), **(given | changes))


def test_a_record_lives_from_opening_to_outcome(tmp_path: Path) -> None:
    store = Records(tmp_path)
    record = opened(store, details={"share": 0.1, "pair": (1, 2)})
    assert (record.record_id, record.is_open) == ("release-0001", True)
    store.add(record.record_id, "seen 1,000", now=6, data={"n": 1000})
    closed = store.close(record.record_id, "accepted", now=7)
    assert not closed.is_open
    assert str(closed) == "release-0001 fraud/2 canary: accepted (1 entries)"
    assert Records(tmp_path).get("release-0001") == closed
    assert closed.details == {"share": 0.1, "pair": [1, 2]}
    store.add(record.record_id, "learned later", now=9)
    assert [entry.text for entry in store.get("release-0001").timeline] == ["seen 1,000", "learned later"]


def test_the_page_says_it_all(tmp_path: Path) -> None:
    store = Records(tmp_path)
    record = opened(store, title="canary\nof two | three", details={"share": 0.1})
    page = tmp_path / "records" / "release-0001.md"
    assert "Nothing yet." in page.read_text()
    store.add(record.record_id, "seen", now=60_000_000, data={"n": 1000})
    store.close(record.record_id, "refused", now=120_000_000)
    text = page.read_text()
    assert text.startswith("# release-0001: canary of two | three\n")
    for part in ("| version | fraud/2 |", "## Why\n\ndrift", '"share": 0.1', "- **1970-01-01T00:01:00Z** seen"):
        assert part in text
    assert "| outcome | refused (1970-01-01T00:02:00Z) |" in text


def test_ids_count_by_kind_and_the_list_is_by_time(tmp_path: Path) -> None:
    store = Records(tmp_path)
    assert store.list() == ()
    opened(store, now=30)
    opened(store, now=10, kind="incident")
    opened(store, now=20)
    assert [record.record_id for record in store.list()] == ["incident-0001", "release-0002", "release-0001"]
    assert [record.record_id for record in store.list("incident")] == ["incident-0001"]


def test_a_key_opens_and_adds_once(tmp_path: Path) -> None:
    store = Records(tmp_path)
    first = opened(store, key="a")
    store.add(first.record_id, "one", now=1, key="k")
    again = opened(store, key="a", now=99, why="said otherwise")
    assert again == store.add(first.record_id, "one again", now=2, key="k")
    assert (again.why, len(again.timeline), len(store.list())) == ("drift", 1, 1)
    assert opened(store, key="a", kind="incident").record_id == "incident-0001"
    with pytest.raises(Conflict, match="key 'a'"):
        opened(store, key="a", version="fraud/3")
    closed = store.close(first.record_id, "done", now=3)
    assert store.close(first.record_id, "done", now=4) == closed
    with pytest.raises(Conflict, match="closed as 'done'"):
        store.close(first.record_id, "otherwise", now=5)


def test_a_page_that_a_crash_left_behind_is_written_by_the_repeated_step(tmp_path: Path) -> None:
    store = Records(tmp_path)
    opened(store, key="a")
    page = tmp_path / "records" / "release-0001.md"
    page.unlink()
    opened(store, key="a")
    assert page.exists()


@pytest.mark.parametrize(
    "changes", [{"kind": "note"}, {"title": " "}, {"why": ""}, {"system": ""}, {"details": {"x": float("nan")}}]
)
def test_what_cannot_be_recorded_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        opened(Records(tmp_path), **changes)
    assert Records(tmp_path).list() == ()


@pytest.mark.parametrize("record_id", ["release-0001", "../release-0001", "", "note-0001"])
def test_an_unknown_record_is_not_found(tmp_path: Path, record_id: str) -> None:
    with pytest.raises(NotFound):
        Records(tmp_path).get(record_id)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"timeline": 3}', "\udcff"])
def test_a_damaged_record_is_a_store_error(tmp_path: Path, content: str) -> None:
    store = Records(tmp_path)
    opened(store)
    (tmp_path / "records" / "release-0001.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(StoreError, match=r"release-0001\.json"):
        store.get("release-0001")


def test_a_full_disk_leaves_the_record_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Records(tmp_path)
    before = opened(store)

    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "write_durable", full)
    with pytest.raises(StoreError, match="No space left"):
        store.add("release-0001", "seen", now=6)
    assert store.get("release-0001") == before
    assert sorted(path.name for path in (tmp_path / "records").iterdir()) == [
        ".lock",
        "release-0001.json",
        "release-0001.md",
    ]


def test_processes_that_open_at_once_get_ids_of_their_own(tmp_path: Path) -> None:
    code = (
        "import sys; from vitok.loop.records import Records; store = Records(sys.argv[1])\n"
        "for n in range(10): store.open('incident', 'x', system='s', version=None, now=n, why='w')"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [child.wait(timeout=60) for child in children] == [0, 0]
    found = Records(tmp_path).list()
    assert sorted(record.record_id for record in found) == [f"incident-{n:04d}" for n in range(1, 21)]
    assert json.loads((tmp_path / "records" / "incident-0020.json").read_text())["kind"] == "incident"


def test_a_text_that_was_no_utf_8_is_written(tmp_path: Path) -> None:
    records = Records(tmp_path)
    record = records.open("incident", "caf\udce9", system="fraud", version=None, now=0, why="x")
    added = records.add(record.record_id, "\udce9", now=1, data={"text": "\udce9"})
    assert records.get(record.record_id) == added
    assert "caf\\udce9" in (tmp_path / "records" / "incident-0001.md").read_text()
