import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitok import settings
from vitok.errors import InvalidInput
from vitok.registry import DataSnapshot, column_statistics, find_provenance
from vitok.registry import provenance as module

GIT = [
    "git",
    "-c",
    "user.name=a",
    "-c",
    "user.email=a@b",
    "-c",
    "commit.gpgsign=false",
    "-c",
    "core.hooksPath=/dev/null",
]


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run([*GIT, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    return folder


def test_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = find_provenance(tmp_path)
    assert (found.commit, found.branch, found.dirty, found.diff, found.status) == (None, None, False, "", "")
    assert str(found).startswith("no git checkout, Python 3.")
    assert find_provenance(tmp_path / "nowhere").commit is None


def test_a_checkout_without_a_commit(checkout: Path) -> None:
    (checkout / "a").write_text("1\n")
    found = find_provenance(checkout)
    assert (found.commit, found.branch, found.dirty, found.diff) == (None, "main", True, "")


def test_changes_can_be_applied_again(checkout: Path) -> None:
    (checkout / "a").write_text("1\n")
    (checkout / "b").write_bytes(bytes(range(256)))
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "x")
    clean = find_provenance(checkout)
    assert clean.commit == git(checkout, "rev-parse", "HEAD")
    assert not clean.dirty
    (checkout / "a").write_text("2\n")
    (checkout / "b").write_bytes(bytes(reversed(range(256))))
    (checkout / "new").touch()
    found = find_provenance(checkout)
    assert found.dirty
    assert "?? new" in found.status
    assert " with changes" in str(found)
    git(checkout, "checkout", "-q", "--", ".")
    subprocess.run([*GIT, "apply", "-"], cwd=checkout, check=True, input=found.diff, text=True)
    assert (checkout / "a").read_text() == "2\n"
    assert (checkout / "b").read_bytes() == bytes(reversed(range(256)))


def test_a_huge_change_is_named_by_its_hash(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "a").write_text("1\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "x")
    (checkout / "a").write_text("2\n" * 100)
    monkeypatch.setattr(module, "_DIFF_LIMIT", 50)
    assert "SHA-256" in find_provenance(checkout).diff


def test_a_machine_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_provenance(tmp_path).commit is None


def test_environment(tmp_path: Path) -> None:
    one, two = find_provenance(tmp_path), find_provenance(tmp_path)
    assert one.packages_digest == two.packages_digest
    assert one.packages["numpy"]
    assert json.loads(json.dumps(one.environment()))["hardware"]["cores"] >= 1


def test_data_snapshot() -> None:
    assert DataSnapshot(digest="ab", rows=0).rows == 0
    with pytest.raises(InvalidInput, match="digest"):
        DataSnapshot(digest="", rows=1)
    with pytest.raises(InvalidInput, match="rows"):
        DataSnapshot(digest="ab", rows=-1)
    with pytest.raises(InvalidInput, match="amount"):
        DataSnapshot(digest="ab", rows=1, statistics={"amount": {"mean": float("nan")}})


def test_statistics_of_columns() -> None:
    values = np.r_[np.arange(101.0), np.nan, np.inf]
    found = column_statistics({"a": values, "none": np.full(3, np.nan), "empty": []})
    assert found["a"] == {"n": 103, "nulls": 1, "mean": 50.0, "q0": 0, "q0.05": 5, "q0.5": 50, "q0.95": 95, "q1": 100}
    assert found["none"]["nulls"] == 3
    assert found["none"]["mean"] is found["none"]["q0.5"] is found["empty"]["q1"] is None
    assert DataSnapshot(digest="ab", rows=3, statistics=found).statistics == json.loads(json.dumps(found))


def test_the_lock_file_that_is_named_goes_in_by_its_hash(tmp_path: Path) -> None:
    assert find_provenance(tmp_path).lock_digest is None
    lock = tmp_path / "constraints.txt"
    lock.write_text("numpy==2.0\n")
    with settings.using(lock=lock):
        found = find_provenance(tmp_path)
    assert found.lock_digest == hashlib.sha256(b"numpy==2.0\n").hexdigest() == found.environment()["lock_digest"]
    with settings.using(lock=tmp_path / "none.txt"), pytest.raises(InvalidInput, match="lock: got"):
        find_provenance(tmp_path)


def test_what_git_does_not_say_is_not_called_unchanged(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "a").write_text("1\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "x")
    real = subprocess.run

    def slow(command: list[str], **options: Any) -> Any:
        if "status" in command or "diff" in command:
            raise subprocess.TimeoutExpired(command, 20)
        return real(command, **options)

    monkeypatch.setattr(module.subprocess, "run", slow)
    found = find_provenance(checkout)
    assert found.commit is not None
    assert found.dirty
    assert "did not say" in found.status
    assert "did not say" in found.diff
