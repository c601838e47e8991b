import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.registry import Package, files, package, read_package, write_package

FILES = {
    package.MODEL_ONNX: bytes(range(256)) * 10,
    package.MODEL_NATIVE: "tree\n",
    package.SIGNATURE: {"inputs": [{"name": "amount", "dtype": "float32"}], "output": "score"},
    package.FEATURES: [{"name": "amount", "hash": "ab"}],
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(folder: Path, **changes: object) -> Package:
    return write_package(folder, **{"name": "fraud", "version": 3, "files": FILES, "created": 5, **changes})  # type: ignore[arg-type]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    native = tmp_path / "native.bin"
    native.write_bytes(b"\x00\xff")
    written = write(tmp_path / "a" / "3", files={**FILES, "native.bin": native, "empty": b""})
    read = read_package(tmp_path / "a" / "3")
    assert read == written
    assert (read.name, read.version, read.created, read.kind) == ("fraud", 3, 5, "model")
    assert read.bytes(package.MODEL_ONNX) == FILES[package.MODEL_ONNX]
    assert read.text(package.MODEL_NATIVE) == "tree\n"
    assert read.json(package.SIGNATURE) == FILES[package.SIGNATURE]
    assert read.json(package.FEATURES) == FILES[package.FEATURES]
    assert read.bytes("native.bin") == b"\x00\xff"
    assert read.bytes("empty") == b""
    assert read.path(package.MODEL_ONNX).is_file()
    assert package.MODEL_ONNX in read
    assert package.POLICY not in read
    assert "fraud/3 (model, 6 files" in str(read)
    assert names(tmp_path / "a") == ["3"]
    with pytest.raises(NotFound, match=r"policy\.json"):
        read.json(package.POLICY)


def test_digest_is_of_the_contents_only(tmp_path: Path) -> None:
    one = write(tmp_path / "1")
    two = write(tmp_path / "2", version=4, created=9, name="other", files=dict(reversed(FILES.items())))
    three = write(tmp_path / "3", files={**FILES, package.MODEL_NATIVE: "tree"})
    assert one.digest == two.digest != three.digest


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_found_and_its_file_named(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "3"
    if not folder.exists():
        write(folder)
    name = data.draw(st.sampled_from([*FILES, package.MANIFEST]))
    path = folder / name
    good = path.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    bad = bytes([good[place] ^ data.draw(st.integers(1, 255))])
    change = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    spoiled = {
        "flip": good[:place] + bad + good[place + 1 :],
        "cut": good[:place],
        "insert": good[:place] + bad + good[place:],
    }[change]
    path.write_bytes(spoiled)
    try:
        with pytest.raises(StoreError, match=name.replace(".", r"\.")):
            read_package(folder)
    finally:
        path.write_bytes(good)
    assert read_package(folder).version == 3


def test_a_change_after_reading_is_found_too(tmp_path: Path) -> None:
    found = write(tmp_path / "3")
    (tmp_path / "3" / package.MODEL_NATIVE).write_text("Tree\n")
    with pytest.raises(StoreError, match=r"model\.txt was changed"):
        found.bytes(package.MODEL_NATIVE)
    (tmp_path / "3" / package.MODEL_NATIVE).unlink()
    with pytest.raises(StoreError, match=r"model\.txt cannot be read"):
        found.bytes(package.MODEL_NATIVE)


def test_missing_added_and_linked_files(tmp_path: Path) -> None:
    folder = tmp_path / "3"
    write(folder)
    (folder / "extra.bin").touch()
    with pytest.raises(StoreError, match=r"extra\.bin was added"):
        read_package(folder)
    (folder / "extra.bin").unlink()
    (folder / package.MODEL_NATIVE).rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"model\.txt is missing"):
        read_package(folder)
    (folder / package.MODEL_NATIVE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"model\.txt is missing"):
        read_package(folder)


def test_a_manifest_of_another_format(tmp_path: Path) -> None:
    folder = tmp_path / "3"
    write(folder)
    manifest = json.loads((folder / package.MANIFEST).read_text())
    del manifest["seal"]
    (folder / package.MANIFEST).write_bytes(package.sealed({**manifest, "format": 2}))
    with pytest.raises(StoreError, match="format 2"):
        read_package(folder)
    (folder / package.MANIFEST).write_text("[]")
    with pytest.raises(StoreError, match="manifest"):
        read_package(folder)


def test_no_package(tmp_path: Path) -> None:
    write(tmp_path / "3")
    with pytest.raises(NotFound, match="there is: 3"):
        read_package(tmp_path / "4")
    with pytest.raises(NotFound, match="nothing yet"):
        read_package(tmp_path / "no" / "where")


def test_a_package_is_never_written_twice(tmp_path: Path) -> None:
    first = write(tmp_path / "3")
    with pytest.raises(Conflict, match="exists already"):
        write(tmp_path / "3", files={"x": b""})
    assert read_package(tmp_path / "3") == first


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "Fraud"}, "model"),
        ({"name": "../up"}, "model"),
        ({"name": ""}, "model"),
        ({"version": 0}, "version"),
        ({"files": {}}, "files"),
        ({"files": {"a/b": b""}}, "files"),
        ({"files": {"..": b""}}, "files"),
        ({"files": {".hidden": b""}}, "files"),
        ({"files": {"manifest.json": b""}}, "files"),
        ({"files": {"x.json": {"a": float("nan")}}}, r"files\[x\.json\]"),
        ({"files": {"x.json": {"a": object()}}}, r"files\[x\.json\]"),
        ({"files": {"x.bin": Path("/does/not/exist")}}, r"files\[x\.bin\]"),
    ],
)
def test_bad_input_leaves_nothing(tmp_path: Path, change: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        write(tmp_path / "3", **change)
    assert names(tmp_path) == []


@pytest.mark.parametrize("step", ["write_durable", "sync_folder"])
def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    calls = []

    def full(*_: object) -> None:
        calls.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(package, step, full)
    with pytest.raises(StoreError, match="No space left"):
        write(tmp_path / "3")
    assert calls
    assert names(tmp_path) == []


def test_somebody_else_writes_the_same_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.sync_folder

    def slow(folder: Path) -> None:
        monkeypatch.setattr(package, "sync_folder", real)
        write(tmp_path / "3")
        real(folder)

    monkeypatch.setattr(package, "sync_folder", slow)
    with pytest.raises(Conflict, match="somebody else"):
        write(tmp_path / "3")
    assert names(tmp_path) == ["3"]
