from pathlib import Path

import pytest

from vitok.errors import StoreError
from vitok.features.journal import Journal


def test_each_reader_follows_on_its_own(tmp_path: Path) -> None:
    one, other = Journal(tmp_path / "facts.jsonl"), Journal(tmp_path / "facts.jsonl")
    assert list(other.follow()) == []
    for number in range(3):
        with one.exclusive():
            list(one.follow())
            one.append([{"n": number}])
        assert list(other.follow()) == [{"n": number}]
    assert list(Journal(tmp_path / "facts.jsonl").follow()) == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_text_of_any_kind_is_one_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "facts.jsonl")
    odd = {"text": "line\nbreak\r\u2028 \x1f é \U0001f600", "none": None}
    with journal.exclusive():
        journal.append([odd])
    assert list(journal.follow()) == [odd]


def test_lines_put_in_another_order_are_noticed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "facts.jsonl")
    with journal.exclusive():
        journal.append([{"n": number} for number in range(3)])
    first, second, third = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(first + third + second)
    with pytest.raises(StoreError, match=f"at byte {len(first)} "):
        list(Journal(journal.path).follow())


def test_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").mkdir()
    journal = Journal(tmp_path / "facts.jsonl")
    with pytest.raises(StoreError, match="cannot be read"):
        list(journal.follow())
    with pytest.raises(StoreError, match="cannot be opened"):
        journal.append([{}])
