"""Steps run once each, also over kill -9, errors and a change of the program."""

import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from vitok import settings
from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.loop.durable import Durable

# Writes a line for each step that runs; the step named in argv dies by SIGKILL after its work, the first time.
CHILD = textwrap.dedent(
    """
    import json, os, signal, sys
    from pathlib import Path
    from vitok.loop.durable import Durable

    home, deadly = Path(sys.argv[1]), sys.argv[2]

    def step(name):
        def work(done):
            trace = home / "trace"
            before = trace.read_text() if trace.exists() else ""
            with trace.open("a") as file:
                file.write(name + "\\n")
            if name == deadly and name not in before.split():
                os.kill(os.getpid(), signal.SIGKILL)
            return {name: len(done)}
        return name, work

    with Durable(home) as durable:
        print(json.dumps(durable.run("turn", [step(name) for name in ("rows", "fit", "gate", "release")])))
    """
)


def child(home: Path, deadly: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, str(home), deadly]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("deadly", ["rows", "gate"])
def test_a_killed_process_goes_on_behind_the_last_finished_step(tmp_path: Path, deadly: str) -> None:
    first = child(tmp_path, deadly)
    assert first.returncode == -signal.SIGKILL
    second = child(tmp_path, deadly)
    assert second.returncode == 0, second.stderr
    assert second.stderr == ""
    assert json.loads(second.stdout) == {"rows": 0, "fit": 1, "gate": 2, "release": 3}
    expected = ["rows", "fit", "gate", "release"]
    expected.insert(expected.index(deadly), deadly)
    assert (tmp_path / "trace").read_text().split() == expected
    with Durable(tmp_path) as durable:
        untouched = [(name, lambda done: pytest.fail("ran again")) for name in ("rows", "fit", "gate", "release")]
        assert durable.run("turn", untouched) == json.loads(second.stdout)


def test_an_error_is_the_steps_own_and_the_next_run_begins_there(tmp_path: Path) -> None:
    trace: list[str] = []

    def rows(done: dict[str, Any]) -> dict[str, Any]:
        trace.append("rows")
        return {"rows": 10}

    def fit(done: dict[str, Any]) -> dict[str, Any]:
        trace.append("fit")
        if trace.count("fit") < 3:
            raise InvalidInput("labels", 0, "be at least 1")
        return {"model": done["rows"] * 2}

    with Durable(tmp_path) as durable:
        for _ in range(2):
            with pytest.raises(InvalidInput, match="labels: got 0"):
                durable.run("turn", [("rows", rows), ("fit", fit)])
        assert durable.run("turn", [("rows", rows), ("fit", fit)]) == {"rows": 10, "model": 20}
        assert trace == ["rows", "fit", "fit", "fit"]
        assert durable.run("another", [("rows", rows)]) == {"rows": 10}


def test_results_are_those_that_a_later_process_reads(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def look(done: dict[str, Any]) -> dict[str, Any]:
        done["pair"].append("changed")
        return {"looked": True}

    def look_again(done: dict[str, Any]) -> dict[str, Any]:
        seen.append(done)
        return {}

    with Durable(tmp_path) as durable:
        steps = [("pair", lambda done: {"pair": (1, 2)}), ("look", look), ("again", look_again)]
        assert durable.run("turn", steps) == {"pair": [1, 2], "looked": True}
    assert seen == [{"pair": [1, 2], "looked": True}]


def test_steps_run_in_the_callers_context(tmp_path: Path) -> None:
    with Durable(tmp_path) as durable, settings.using(seed=77):
        assert durable.run("turn", [("seed", lambda done: {"seed": settings.current().seed})]) == {"seed": 77}


@pytest.mark.parametrize("result", [None, [1], {"x": float("nan")}, {"x": object()}])
def test_a_result_that_json_cannot_hold_is_refused(tmp_path: Path, result: Any) -> None:
    with Durable(tmp_path) as durable, pytest.raises(InvalidInput, match="step bad: result"):
        durable.run("turn", [("bad", lambda done: result)])


def test_other_steps_under_a_begun_key_are_a_conflict(tmp_path: Path) -> None:
    def fails(done: dict[str, Any]) -> dict[str, Any]:
        raise OSError("no space")

    with Durable(tmp_path) as durable:
        with pytest.raises(OSError, match="no space"):
            durable.run("turn", [("rows", lambda done: {}), ("fit", fails)])
        with pytest.raises(Conflict, match="begun with the steps"):
            durable.run("turn", [("other", lambda done: {}), ("fit", fails)])


@pytest.mark.parametrize(("key", "names"), [("", ["a"]), ("k", []), ("k", ["a", "a"]), ("k", [""])])
def test_keys_and_steps_are_checked(tmp_path: Path, key: str, names: list[str]) -> None:
    with pytest.raises(InvalidInput):
        Durable(tmp_path).run(key, [(name, lambda done: {}) for name in names])


def test_one_durable_is_open_in_a_process_and_one_process_in_a_home(tmp_path: Path) -> None:
    step = [("a", lambda done: {"a": 1})]
    with Durable(tmp_path / "one") as first:
        first.run("turn", step)
        with pytest.raises(Conflict, match="close that Durable first"):
            Durable(tmp_path / "two").run("turn", step)
        code = (
            "import sys; from vitok.loop.durable import Durable; "
            "Durable(sys.argv[1], wait_s=0.01).run('turn', [('a', lambda done: {})])"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "one")]
        other = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert "vitok.errors.Conflict: lock" in other.stderr
    with Durable(tmp_path / "two") as second:
        assert second.run("turn", step) == {"a": 1}


def test_nothing_is_left_running_after_close(tmp_path: Path) -> None:
    before = threading.active_count()
    with Durable(tmp_path) as durable:
        durable.run("turn", [("a", lambda done: {})])
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert threading.active_count() == before


def test_a_file_that_is_no_database_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "loop.sqlite").write_bytes(b"something else" * 100)
    with pytest.raises(StoreError, match=r"loop\.sqlite"):
        Durable(tmp_path).run("turn", [("a", lambda done: {})])
    (tmp_path / "loop.sqlite").unlink()
    with Durable(tmp_path) as durable:
        assert durable.run("turn", [("a", lambda done: {"a": 1})]) == {"a": 1}


def test_a_key_that_dbos_took_up_without_its_steps_is_run_all_the_same(tmp_path: Path) -> None:
    from dbos import DBOS

    trace: list[str] = []

    def fit(done: dict[str, Any]) -> dict[str, Any]:
        trace.append("fit")
        if len(trace) == 1:
            raise OSError("no space")
        return {"fit": 1}

    steps = [("rows", lambda done: {"rows": 1}), ("fit", fit)]
    with Durable(tmp_path) as durable:
        with pytest.raises(OSError, match="no space"):
            durable.run("turn", steps)
        # As where a process is killed right after it asked DBOS to go on: the key waits, its steps are not known.
        handle = DBOS.rewind_workflow("turn", start_step=2)
        with pytest.raises(Exception, match="not known in this process"):
            handle.get_result(polling_interval_sec=0.02)
        assert durable.run("turn", steps) == {"rows": 1, "fit": 1}
    assert trace == ["fit", "fit"]
