"""Identifiers: their form (RFC 9562, with `uuid` of the standard library as the oracle), and their order."""

import threading
import time
import uuid

import pytest

from vitok import ids


@pytest.mark.parametrize("n", [1, 2, 33, 5_000])
def test_form_and_order(n: int) -> None:
    before = time.time_ns() // 1_000_000
    made = ids.uuid7s(n)
    assert len(made) == len(set(made)) == n
    assert sorted(made) == made
    assert made.data == b"".join(made)
    for identifier in made:
        known = uuid.UUID(bytes=identifier)
        assert (known.version, known.variant) == (7, uuid.RFC_4122)
    assert before <= int.from_bytes(made[0][:6], "big")
    assert made.texts == [str(uuid.UUID(bytes=identifier)) for identifier in made]
    assert ids.texts(made) is made.texts
    assert ids.texts(list(made)) == made.texts


def test_none() -> None:
    made = ids.uuid7s(0)
    assert (made, made.data, made.texts) == ([], b"", [])


def test_a_clock_that_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ids.uuid7s(3)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    later = [*ids.uuid7s(5_000), ids.uuid7(), *ids.uuid7s(2)]
    assert sorted([*first, *later]) == [*first, *later]


def test_several_threads_make_none_twice() -> None:
    found: list[list[bytes]] = []
    threads = [
        threading.Thread(target=lambda: found.append([one for _ in range(200) for one in ids.uuid7s(7)]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(sorted(part) == part for part in found)
    assert len({one for part in found for one in part}) == 4 * 1_400
