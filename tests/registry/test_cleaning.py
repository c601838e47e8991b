"""What is removed is what nothing refers to: each reason to keep something is tried by itself."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.serving.test_cost_report import write

from vitok.clock import DAY
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.registry import Cleaned, Registry, Tracker, at_least, backup, clean, evaluate, restore

ACCEPTED = evaluate([at_least("x", 1, 0)])
NOW = 100 * DAY


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "home")


def add(registry: Registry, *, now: int = 0, run_id: str | None = None, gate: bool = True) -> int:
    version = registry.register("fraud", {"model.onnx": os.urandom(100)}, now=now, actor="train", run_id=run_id)
    if gate:
        registry.ledger.record_gate("fraud", version.version, ACCEPTED, now=now, actor="gate")
    return version.version


def cleaned(registry: Registry, **more: Any) -> Cleaned:
    return clean(registry.home, now=NOW, actor="ann", **{"dry_run": False, **more})


def names(found: Cleaned) -> list[str]:
    return [removal.name for removal in found.removals]


def test_what_was_in_a_stage_is_kept(registry: Registry) -> None:
    ledger = registry.ledger
    for _ in range(7):
        add(registry)
    add(registry, now=NOW - DAY)
    ledger.promote("fraud", 1, "Production", reason="r", actor="a", now=1)
    ledger.start_canary("fraud", 2, 0.1, reason="r", actor="a", now=2)
    ledger.end_canary("fraud", verdict="refused", reason="r", actor="a", now=3)
    ledger.promote("fraud", 3, "Staging", reason="r", actor="a", now=4)
    ledger.promote("fraud", 3, "Archived", reason="r", actor="a", now=5)
    ledger.propose("fraud", 4, reason="r", actor="a", now=6)
    ledger.promote("fraud", 5, "Archived", reason="refused", actor="a", now=7)
    dry = cleaned(registry, dry_run=True)
    assert names(dry) == ["fraud/5", "fraud/6", "fraud/7"]
    assert dry.kept == (("fraud/4", "it is proposed"),)
    assert "would be removed" in str(dry)
    assert registry.load("fraud", 5).version == 5
    assert names(cleaned(registry)) == ["fraud/5", "fraud/6", "fraud/7"]
    assert sorted(path.name for path in (registry.packages / "fraud").iterdir()) == ["1", "2", "3", "4", "8"]
    assert names(cleaned(registry)) == []
    assert registry.ledger.verify().intact
    assert [entry.version for entry in ledger.history("fraud") if entry.kind == "removed"] == [5, 6, 7]


def test_a_removed_version_comes_to_no_stage(registry: Registry, tmp_path: Path) -> None:
    add(registry)
    add(registry)
    cleaned(registry)
    ledger = registry.ledger
    assert "package removed" in str(registry.state("fraud").version(1))
    with pytest.raises(NotFound, match="fraud/1, which was removed"):
        registry.load("fraud", 1)
    for stage in ("Staging", "Production"):
        with pytest.raises(Conflict, match="was removed"):
            ledger.promote("fraud", 1, stage, reason="r", actor="a", now=NOW, override="trust me")
    ledger.promote("fraud", 2, "Production", reason="r", actor="a", now=NOW)
    with pytest.raises(Conflict, match="was removed"):
        ledger.start_canary("fraud", 1, 0.5, reason="r", actor="a", now=NOW)
    with pytest.raises(Conflict, match="was removed"):
        ledger.remove("fraud", 1, reason="r", actor="a", now=NOW)
    with pytest.raises(Conflict, match="its package is kept"):
        ledger.remove("fraud", 2, reason="r", actor="a", now=NOW)
    assert registry.register("fraud", {"x": b"x"}, now=NOW, actor="train").version == 3
    made = backup(registry.home, tmp_path / "backup", now=NOW)
    assert made.missing == ()
    assert restore(made.folder, tmp_path / "elsewhere").n_packages == 2
    with contextlib.closing(Registry(registry.home)) as anew:
        assert anew.state("fraud").version(1).removed


def test_what_a_decision_names_is_kept(registry: Registry, tmp_path: Path) -> None:
    for _ in range(4):
        add(registry)
    write(registry.home / "log" / "decisions", [{"version": "fraud/1"}, {"shadow_version": "fraud/2"}])
    found = cleaned(registry)
    assert names(found) == ["fraud/3"]
    assert found.kept == (
        ("fraud/1", "decisions in the log name it"),
        ("fraud/2", "decisions in the log name it"),
        ("fraud/4", "it is the latest"),
    )
    with pytest.raises(NotFound, match="logs"):
        cleaned(registry, logs=[tmp_path / "none"])


def test_a_damaged_log_removes_nothing(registry: Registry) -> None:
    add(registry)
    add(registry)
    shutil.copytree(registry.packages / "fraud" / "1", registry.packages / "fraud" / ".orphan-9")
    (registry.home / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="cannot be read"):
        cleaned(registry)
    assert registry.load("fraud", 1).version == 1
    with pytest.raises(InvalidInput, match="duration"):
        cleaned(registry, older_than="soon")


def test_runs_and_their_artifacts(tracker: Tracker, tmp_path: Path) -> None:
    registry = Registry(tracker.home)
    runs = []
    for name in ("there", "deleted", "deleted but serving", "deleted just now"):
        with tracker.run("fraud", name=name) as run:
            run.log_artifact("card.md", "# Card")
        add(registry, run_id=run.run_id)
        runs.append(run.run_id)
    add(registry)
    registry.ledger.promote("fraud", 3, "Production", reason="r", actor="a", now=1)
    client = tracker._client()
    for run_id in runs[1:]:
        client.delete_run(run_id)
    later = 30 * DAY + 1_000 * client.get_run(runs[0]).info.end_time + 60_000_000
    dry = clean(tracker.home, now=later, actor="ann")
    assert names(dry) == ["fraud/2", "fraud/4", runs[1], runs[3]]
    assert dry.kept == (("fraud/1", f"its run {runs[0]} is there"), ("fraud/5", "it is the latest"))
    done = clean(tracker.home, now=later, actor="ann", dry_run=False)
    assert names(done) == names(dry)
    assert done.size > 0
    left = {path.name for path in tracker.artifacts.iterdir()}
    assert {runs[0], runs[2]} <= left
    assert not {runs[1], runs[3]} & left


def test_what_a_crash_left(registry: Registry) -> None:
    add(registry)
    folder = registry.packages / "fraud" / ".orphan-7-abc"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"x" * 2_000)
    assert names(cleaned(registry)) == []
    os.utime(folder, (0, 0))
    found = cleaned(registry)
    assert [str(removal) for removal in found.removals] == [
        "left over fraud/.orphan-7-abc (2 kB): no entry of the ledger names it"
    ]
    assert not folder.exists()


def test_somebody_was_faster(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    add(registry)
    add(registry)

    real = Registry.state

    def state(self: Registry, name: str) -> Any:
        # Between the look and the removal somebody else promotes it.
        found = real(self, name)
        if found.production is None and self is not registry:
            registry.ledger.promote("fraud", 1, "Production", reason="r", actor="a", now=5)
        return found

    monkeypatch.setattr(Registry, "state", state)
    monkeypatch.setattr("vitok.registry.ledger.Ledger.history", lambda self, model, **more: ())
    assert names(cleaned(registry)) == []
    assert registry.load("fraud", 1).version == 1
