"""A backup is a home that can be opened and read, whoever wrote meanwhile and wherever it was interrupted."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from vitok import decisions, ids
from vitok.clock import DAY
from vitok.decision import Outcome
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.registry import Registry, Tracker, at_least, backup, backup_files, evaluate, restore

ACCEPTED = evaluate([at_least("x", 1, 0)])
SCHEMA = decisions.LogSchema("fraud", (), (), ("x",))


def block(n: int) -> decisions.DecisionBlock:
    none, times = decisions.Constant("none"), np.full(n, 1_000_000, np.int64)
    return decisions.DecisionBlock(
        decision_id=ids.uuid7s(n),
        request_id=[f"r{k}" for k in range(n)],
        event_time=times,
        ingest_time=times,
        entities=(),
        request=(),
        features=np.zeros((n, 1)),
        feature_status=decisions.Constant("fresh"),
        model_version=decisions.Constant("fraud/1"),
        stage=decisions.Constant("Production"),
        route=decisions.Constant("champion"),
        route_reason=none,
        score=np.zeros(n),
        probability=np.zeros(n),
        shadow_version=decisions.Constant(None),
        shadow_probability=np.full(n, np.nan),
        policy_version=none,
        action=none,
        propensity=decisions.Constant(1.0),
        latency_us=np.full(n, 10, np.int32),
        cost=np.zeros(n),
        tenant=decisions.Constant(""),
        team=decisions.Constant(""),
    )


def make(home: Path, n: int = 3, *, size: int = 1_000) -> Registry:
    registry = Registry(home)
    for number in range(1, n + 1):
        registry.register("fraud", {"model.onnx": os.urandom(size)}, now=number, actor="train")
    registry.ledger.record_gate("fraud", 1, ACCEPTED, now=n, actor="gate")
    registry.ledger.promote("fraud", 1, "Production", reason="first", actor="ann", now=n)
    return registry


def test_a_home_comes_back(tmp_path: Path) -> None:
    home = tmp_path / "home"
    registry = make(home)
    (home / "log").mkdir()
    (home / "log" / "1.arrow").write_bytes(b"rows")
    (home / "log" / "odd.db").write_bytes(b"no database")
    (home / "log" / "empty.sqlite").touch()
    (home / "online").mkdir()
    (home / "online" / "data.mdb").write_bytes(b"x")
    (home / "online" / "lock.mdb").write_bytes(b"x")
    (home / "link").symlink_to(home / "log")
    made = backup(home, tmp_path / "backup", now=7)
    assert made.skipped == ("link", "online/")
    assert set(made.databases) == {"registry/ledger.sqlite", "log/empty.sqlite"}
    assert "2 databases" in str(made)
    restored = restore(made.folder, tmp_path / "elsewhere")
    assert restored.n_packages == 3
    assert "ledger intact: 5 entries" in str(restored)
    assert (restored.home / "log" / "1.arrow").read_bytes() == b"rows"
    assert (restored.home / "log" / "odd.db").read_bytes() == b"no database"
    opened = Registry(restored.home)
    assert opened.state("fraud") == registry.state("fraud")
    assert opened.load("fraud").digest == registry.load("fraud").digest
    assert opened.register("fraud", {"model.onnx": b"x"}, now=9, actor="train").version == 4
    assert not [path for path in restored.home.iterdir() if path.name.startswith((".", "restoring"))]


def test_runs_and_their_files_come_back_at_another_place(tracker: Tracker, tmp_path: Path) -> None:
    with tracker.run("fraud", name="first") as run:
        run.log_metrics({"auc": 0.9})
        run.log_artifact("card.md", "# Card")
    registry = make(tracker.home)
    tracker.mirror(registry.state("fraud"), packages=registry.packages)
    made = backup(tracker.home, tmp_path / "backup", now=0)
    shutil.move(tracker.home, tmp_path / "gone")
    elsewhere = Tracker(restore(made.folder, tmp_path / "elsewhere").home)
    assert elsewhere.recorded(run.run_id).metrics == {"auc": 0.9}
    client = elsewhere._client()
    assert Path(client.download_artifacts(run.run_id, "card.md")).read_text() == "# Card"
    version = client.get_model_version("fraud", "1")
    assert version.source == (elsewhere.home / "registry/packages/fraud/1").as_uri()
    with elsewhere.run("fraud", name="second") as more:
        more.log_artifact("card.md", "# Card 2")
    assert (elsewhere.artifacts / more.run_id / "artifacts" / "card.md").exists()


def test_what_others_write_meanwhile_is_whole(tmp_path: Path) -> None:
    home = tmp_path / "home"
    registry = make(home)
    stop = threading.Event()
    failed: list[Exception] = []

    def write() -> None:
        with contextlib.closing(Registry(home)) as mine:
            while not stop.is_set():
                try:
                    mine.register("fraud", {"model.onnx": os.urandom(200_000)}, now=9, actor="train")
                except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
                    failed.append(error)
                    return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        taken = [backup(home, tmp_path / f"backup{at}", now=at) for at in range(3)]
    finally:
        stop.set()
        writer.join()
    assert not failed
    counts = []
    for at, made in enumerate(taken):
        restored = restore(made.folder, tmp_path / f"home{at}")
        with contextlib.closing(Registry(restored.home)) as opened:
            counts.append(opened.state("fraud").latest)
            assert [opened.load("fraud", number).version for number in range(1, counts[-1] + 1)]
            assert opened.repair() == ()
    assert counts == sorted(counts)
    assert counts[-1] <= registry.state("fraud").latest


_SCRIPT = """
import sys
from vitok.registry import copying
real = copying.copy_file
def told(source, target):
    print(target.name, flush=True)
    return real(source, target)
copying.copy_file = told
copying.{what}(sys.argv[1], sys.argv[2]{more})
"""


def killed(what: str, more: str, *arguments: Path, at: int) -> None:
    """Kills it by SIGKILL while it copies file number `at`, or somewhat later."""
    command = [sys.executable, "-c", _SCRIPT.format(what=what, more=more), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(at):
            assert process.stdout.readline()
        process.kill()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_it_goes_on(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make(home, 60, size=2_000_000).close()
    folder, elsewhere = tmp_path / "backup", tmp_path / "elsewhere"
    # Each one goes on from where the last was, so the later ones have less to copy.
    for at in (1, 30, 7, 20):
        killed("backup", ", now=0", home, folder, at=at)
        with pytest.raises(StoreError, match="never finished"):
            restore(folder, elsewhere)
    assert not elsewhere.exists()
    backup(home, folder, now=0)
    for at in (1, 30, 7, 20):
        killed("restore", "", folder, elsewhere, at=at)
        with pytest.raises(StoreError, match="restored by half"):
            Registry(elsewhere)
    assert restore(folder, elsewhere).n_packages == 60
    with contextlib.closing(Registry(elsewhere)) as opened:
        assert [opened.load("fraud", number).version for number in range(1, 61)]
        assert opened.ledger.verify().intact
    assert sorted(path.name for path in elsewhere.iterdir()) == ["registry"]


def test_an_interrupted_one_is_not_taken_for_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, folder, elsewhere = tmp_path / "home", tmp_path / "backup", tmp_path / "elsewhere"
    registry = make(home)
    real = backup_files.copy_file
    calls = []

    def failing(source: Path, target: Path) -> object:
        calls.append(target)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("vitok.registry.copying.copy_file", failing)
        with pytest.raises(StoreError, match="No space left on device; run it again to go on"):
            backup(home, folder, now=1)
        with pytest.raises(StoreError, match="never finished; run vitok backup to it again"):
            restore(folder, elsewhere)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(Conflict, match="unfinished backup of"):
        backup(other, folder, now=1)
    registry.register("fraud", {"model.onnx": b"later"}, now=9, actor="train")
    assert backup(home, folder, now=2).begun == 1
    with pytest.raises(Conflict, match="holds a finished backup"):
        backup(home, folder, now=3)

    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr("vitok.registry.copying.copy_file", failing)
        with pytest.raises(StoreError, match="run it again to go on"):
            restore(folder, elsewhere)
    for opening in (Registry, Tracker.prepare):
        with pytest.raises(StoreError, match="restored by half"):
            opening(elsewhere)
    with pytest.raises(Conflict, match="half restored from"):
        restore(backup(home, tmp_path / "second", now=4).folder, elsewhere)
    assert restore(folder, elsewhere).n_packages == 4


def test_what_is_refused(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "backup"
    make(home)
    with pytest.raises(NotFound, match="home"):
        backup(tmp_path / "none", folder, now=0)
    for wrong in (home, home / "inside", tmp_path):
        with pytest.raises(InvalidInput, match="neither lie in the home"):
            backup(home, wrong, now=0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="be empty"):
        backup(home, tmp_path / "full", now=0)
    with pytest.raises(NotFound, match="backup"):
        restore(folder, tmp_path / "elsewhere")
    made = backup(home, folder, now=0)
    with pytest.raises(InvalidInput, match="never goes over what is there"):
        restore(folder, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]
    assert not (tmp_path / "elsewhere").exists()

    name = next(name for name in made.files if name.endswith("model.onnx"))
    copied = folder / "home" / name
    kept = copied.read_bytes()
    copied.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(StoreError, match="is damaged"):
        restore(folder, tmp_path / "damaged")
    copied.write_bytes(kept)
    assert restore(folder, tmp_path / "damaged").n_packages == 3
    manifest = folder / "backup.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "home": "elsewhere"}))
    with pytest.raises(StoreError, match="was changed after"):
        restore(folder, tmp_path / "third")


def test_a_package_that_is_not_there_is_said(tmp_path: Path) -> None:
    home = tmp_path / "home"
    registry = make(home)
    shutil.rmtree(registry.packages / "fraud" / "2")
    made = backup(home, tmp_path / "backup", now=0)
    assert made.missing == ("fraud/2",)
    assert "package fraud/2" in str(made)
    assert restore(made.folder, tmp_path / "elsewhere").n_packages == 2


def test_a_ledger_that_was_altered_is_noticed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make(home).close()
    with contextlib.closing(sqlite3.connect(home / "registry" / "ledger.sqlite")) as connection:
        connection.execute("DROP TRIGGER entry_no_update")
        connection.execute("UPDATE entry SET actor = 'eve' WHERE seq = 2")
        connection.commit()
    made = backup(home, tmp_path / "backup", now=0)
    with pytest.raises(StoreError, match="ALTERED at entry 2"):
        restore(made.folder, tmp_path / "elsewhere")


def test_an_empty_home(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    made = backup(tmp_path / "home", tmp_path / "backup", now=0)
    assert (made.size, made.ledger_head) == (0, "")
    restored = restore(made.folder, tmp_path / "elsewhere")
    assert "no ledger" in str(restored)
    assert list(restored.home.iterdir()) == []


def test_a_log_comes_back_as_far_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    log = decisions.DecisionLog(home / "log" / "decisions", SCHEMA, rows_per_segment=40)
    log.append(block(100))
    real = backup_files.copy_file

    def growing(source: Path, target: Path) -> object:
        # Segments are added, and sealed into other files, while the backup is made.
        log.append(block(30))
        return real(source, target)

    monkeypatch.setattr("vitok.registry.copying.copy_file", growing)
    made = [backup(home, tmp_path / f"backup{at}", now=at) for at in range(3)]
    monkeypatch.undo()
    log.close()
    every = decisions.read(home / "log" / "decisions", columns=["decision_id"])
    lengths = [100]
    for at, one in enumerate(made):
        folder = restore(one.folder, tmp_path / f"home{at}").home / "log" / "decisions"
        decisions.DecisionLog(folder, SCHEMA).close()
        found = decisions.read(folder, columns=["decision_id"])
        assert found.equals(every.head(len(found)))
        lengths.append(len(found))
    assert lengths == sorted(lengths)


def test_a_segment_sealed_after_the_last_look_is_in_the_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    place = home / "log" / "decisions"
    log = decisions.DecisionLog(place, SCHEMA, rows_per_segment=40)
    log.append(block(30))
    real, looks = backup_files.listing, []

    def look(folder: Path) -> backup_files.Listing:
        if len(looks) == 1:
            # The segment that was copied grows, and another follows it.
            log.append(block(5))
            log.append(block(20))
        found = real(folder)
        looks.append(found)
        if len(looks) == 2:
            # All that were open are sealed before they are copied, and one more begins.
            log.close()
            with contextlib.closing(decisions.DecisionLog(place, SCHEMA, rows_per_segment=40)) as more:
                more.append(block(3))
        return found

    monkeypatch.setattr("vitok.registry.copying.listing", look)
    made = backup(home, tmp_path / "backup", now=0)
    monkeypatch.undo()
    restored = restore(made.folder, tmp_path / "elsewhere").home / "log" / "decisions"
    every = decisions.read(place, columns=["decision_id"])
    assert decisions.read(restored, columns=["decision_id"]).equals(every.head(55))
    assert len(every) == 58


@pytest.mark.parametrize("again", [False, True])
def test_segments_merged_before_they_are_copied_are_in_the_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    home = tmp_path / "home"
    place = home / "log" / "decisions"
    looks: list[Path] = []
    merges: list[decisions.Merged] = []

    def write(n: int) -> None:
        with contextlib.closing(decisions.DecisionLog(place, SCHEMA)) as log:
            log.append(block(n))

    def look(folder: Path) -> backup_files.Listing:
        looks.append(folder)
        if len(looks) == 2:
            write(20)
            write(10)
        return real_look(folder)

    def copy(source: Path, target: Path) -> object:
        if source.name.startswith("segment-00000003") and not merges:
            merges.append(decisions.merge(place, now=3 * DAY))
        elif source.name.startswith("segment-00000001-00000004") and again and len(merges) == 1:
            # What is copied instead has gone as well when its turn comes.
            write(5)
            merges.append(decisions.merge(place, now=3 * DAY))
        return real_copy(source, target)

    write(40)
    write(30)
    real_look, real_copy = backup_files.listing, backup_files.copy_file
    monkeypatch.setattr("vitok.registry.copying.listing", look)
    monkeypatch.setattr("vitok.registry.copying.copy_file", copy)
    made = backup(home, tmp_path / "backup", now=0)
    monkeypatch.undo()
    assert [one.segments_after for one in merges] == [1] * (1 + again)
    restored = restore(made.folder, tmp_path / "elsewhere").home / "log" / "decisions"
    every = decisions.read(place, columns=["decision_id"])
    assert len(every) == 100 + 5 * again
    assert decisions.read(restored, columns=["decision_id"]).equals(every)
    # What merging left in the copy goes, and the log can be written.
    assert "nothing to merge" in str(decisions.merge(restored, now=3 * DAY))
    decisions.DecisionLog(restored, SCHEMA).close()
    assert decisions.read(restored, columns=["decision_id"]).equals(every)


@pytest.mark.parametrize("name", ["decisions", "outcomes"])
def test_a_merge_while_the_home_is_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    home = tmp_path / "home"
    place = home / "log" / name
    for at in range(3):
        made_at = Outcome(request_id=f"r{at}", kind="fraud", value=1.0, event_time=5, ingest_time=5)
        with decisions.OutcomeLog(place) as log:
            log.append([made_at])
    real, looks = backup_files.listing, []

    def look(folder: Path) -> backup_files.Listing:
        looks.append(folder)
        found = real(folder)
        if len(looks) != 2:
            return found
        # The walk is past the folder of the merged file before that is there, and comes to the others too late.
        decisions.merge(place, now=3 * DAY)
        files = tuple(sorted(set(found.files) & set(real(folder).files)))
        return dataclasses.replace(found, files=files)

    monkeypatch.setattr("vitok.registry.copying.listing", look)
    made = backup(home, tmp_path / "backup", now=0)
    monkeypatch.undo()
    restored = restore(made.folder, tmp_path / "elsewhere").home / "log" / name
    assert decisions.read(restored)["request_id"].to_list() == ["r0", "r1", "r2"]
