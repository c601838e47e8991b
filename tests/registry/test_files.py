import threading
from pathlib import Path

import pytest

from vitok.errors import Conflict, StoreError
from vitok.registry.files import exclusive, sync_folder, write_durable


def test_one_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(20):
            with exclusive(tmp_path / "lock"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_a_holder_that_does_not_let_go(tmp_path: Path) -> None:
    with exclusive(tmp_path / "a" / "lock"), pytest.raises(Conflict, match="held by another process"):  # noqa: SIM117
        with exclusive(tmp_path / "a" / "lock", wait_s=0.02):
            pass
    with exclusive(tmp_path / "a" / "lock", wait_s=0):
        pass


def test_an_error_inside_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), exclusive(tmp_path / "lock"):
        raise KeyError
    with exclusive(tmp_path / "lock", wait_s=0):
        pass


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError), exclusive(tmp_path / "file" / "lock"):
        pass


def test_durable_writes(tmp_path: Path) -> None:
    write_durable(tmp_path / "x", b"abc")
    sync_folder(tmp_path)
    assert (tmp_path / "x").read_bytes() == b"abc"
    with pytest.raises(FileExistsError):
        write_durable(tmp_path / "x", b"")
