import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.registry import Ledger, Registry, at_least, evaluate, package

FILES: dict[str, Any] = {"model.onnx": b"weights", "signature.json": {"inputs": []}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, and what it interrupts is not tidied up."""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path / "home")
    yield registry
    registry.close()


def register(registry: Registry, **more: object) -> object:
    return registry.register("fraud", **{"files": FILES, "now": 1, "actor": "train", **more})  # type: ignore[arg-type]


def test_register_and_load(registry: Registry) -> None:
    first = registry.register("fraud", FILES, now=1, actor="train", run_id="r")
    assert (first.version, first.stage, first.path, first.run_id) == (1, "None", "fraud/1", "r")
    register(registry, files={"model.onnx": b"other"})
    assert [version.name for version in registry.versions("fraud")] == ["fraud/1", "fraud/2"]
    assert registry.load("fraud", 1).digest == first.digest
    assert registry.load("fraud", "latest").bytes("model.onnx") == b"other"
    with pytest.raises(NotFound, match="Production"):
        registry.load("fraud")
    registry.ledger.record_gate("fraud", 1, evaluate([at_least("x", 1, 0)]), now=2, actor="gate")
    registry.ledger.promote("fraud", 1, "Production", reason="r", actor="a", now=3)
    assert registry.load("fraud").version == 1
    assert registry.state("fraud").production == 1


def test_unknown_names(registry: Registry) -> None:
    with pytest.raises(NotFound, match="nothing yet"):
        registry.versions("fraud")
    with pytest.raises(NotFound):
        registry.load("fraud", 1)
    register(registry)
    with pytest.raises(NotFound, match="fraud/1"):
        registry.load("fraud", 2)
    with pytest.raises(InvalidInput, match="model"):
        registry.register("../x", FILES, now=0, actor="a")


def test_key_makes_registering_repeatable(registry: Registry) -> None:
    first = register(registry, key="k")
    assert register(registry, key="k", files={"other": b"x"}) == first
    assert len(registry.versions("fraud")) == 1
    registry.ledger.note("fraud", "n", actor="a", now=1, key="n")
    with pytest.raises(Conflict, match="something else"):
        register(registry, key="n")
    assert names(registry.packages / "fraud") == ["1"]


def test_another_package_in_the_place_of_a_version(registry: Registry) -> None:
    register(registry)
    folder = registry.packages / "fraud" / "1"
    folder.rename(registry.home / "away")
    package.write_package(folder, name="fraud", version=1, files={"model.onnx": b"evil"}, created=1)
    with pytest.raises(StoreError, match="not the one that was registered as fraud/1"):
        registry.load("fraud", 1)


@pytest.mark.parametrize("place", ["first file", "manifest", "before rename", "after rename", "before entry"])
def test_kill_between_steps(registry: Registry, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    register(registry)
    count = 0

    def killed(*_: object, **__: object) -> None:
        raise Killed

    def files(path: Path, content: bytes) -> None:
        nonlocal count
        count += 1
        if place == "first file" or (place == "manifest" and path.name == package.MANIFEST):
            raise Killed
        path.write_bytes(content)

    def folder(path: Path) -> None:
        if (place == "before rename") == path.name.startswith("."):
            raise Killed

    if place in ("first file", "manifest"):
        monkeypatch.setattr(package, "write_durable", files)
    elif place == "before entry":
        monkeypatch.setattr(Ledger, "register", killed)
    else:
        monkeypatch.setattr(package, "sync_folder", folder)
    # A killed process removes nothing.
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    with pytest.raises(Killed):
        register(registry, files={"model.onnx": b"half"})
    monkeypatch.undo()
    assert len(names(registry.packages / "fraud")) == 2
    assert registry.state("fraud").latest == 1
    again = Registry(registry.home)
    assert [name for name in names(again.packages / "fraud") if ".orphan-" not in name] == ["1"]
    assert again.repair() == ()
    second = register(again, files={"model.onnx": b"whole"})
    assert again.load("fraud", 2).bytes("model.onnx") == b"whole"
    assert again.versions("fraud")[1] == second
    assert again.ledger.verify().intact
    again.close()


def test_a_package_left_over_is_out_of_the_way_without_opening_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.write_package(registry.packages / "fraud" / "1", name="fraud", version=1, files=FILES, created=0)
    register(registry, files={"model.onnx": b"mine"})
    assert registry.load("fraud", 1).bytes("model.onnx") == b"mine"


def test_a_failed_entry_leaves_no_package(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="actor"):
        register(registry, actor="")
    assert names(registry.packages / "fraud") == []


def test_a_lost_ledger_is_not_taken_for_an_empty_one(registry: Registry) -> None:
    register(registry)
    register(registry)
    registry.close()
    for file in (registry.home / "registry").glob("ledger.sqlite*"):
        file.unlink()
    with pytest.raises(StoreError, match="older than the packages"):
        Registry(registry.home)
    assert names(registry.packages / "fraud") == ["1", "2"]


def test_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        Registry(tmp_path / "file")


def test_home_can_be_moved(registry: Registry, tmp_path: Path) -> None:
    register(registry)
    registry.close()
    registry.home.rename(tmp_path / "moved")
    moved = Registry(tmp_path / "moved")
    assert moved.load("fraud", 1).version == 1
    copy = pickle.loads(pickle.dumps(moved))
    assert copy.load("fraud", 1).version == 1
    moved.close()
    copy.close()


def test_threads_register_at_once(registry: Registry) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        other = Registry(registry.home)
        try:
            for _ in range(4):
                register(other)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)
        finally:
            other.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [version.version for version in registry.versions("fraud")] == list(range(1, 13))
    assert [registry.load("fraud", number).version for number in range(1, 13)] == list(range(1, 13))


ENDLESS = """
import sys
from vitok.registry import Registry
registry = Registry(sys.argv[1])
while True:
    version = registry.register("fraud", {"model.onnx": b"weights" * 1000, "a": b"1", "b": b"2"}, now=1, actor="t")
    sys.stdout.write(f"{version.version}\\n")
    sys.stdout.flush()
"""


def test_sigkill_loses_no_version_that_was_acknowledged(tmp_path: Path) -> None:
    seen = 0
    for wanted in (1, 2, 3):
        process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(wanted):
            seen = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait(10)
        process.stdout.close()
        seen = max([seen, *map(int, rest)])
        registry = Registry(tmp_path)
        versions = registry.versions("fraud")
        assert len(versions) >= seen
        assert all(registry.load("fraud", version.version).digest == version.digest for version in versions)
        visible = [name for name in names(registry.packages / "fraud") if not name.startswith(".")]
        assert len(visible) == len(versions)
        assert registry.ledger.verify().intact
        registry.close()
