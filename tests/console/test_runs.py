"""Runs in the terminal and on pages: the same records, everything escaped, gaps where a value is not finite."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.console.conftest import get
from tests.console.test_pages import check_markup
from typer.testing import CliRunner, Result

from vitok.console.run_commands import run_app
from vitok.console.run_seen import drawings, runs_beside
from vitok.registry import MetricHistory, Tracker

pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
ODD = "<b>&\"'[red]o"


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A home with three runs, one of them with a name that is markup."""
    home = tmp_path_factory.mktemp("runs")
    tracker = Tracker(home)
    ids = []
    for name, leaves in (("first", 31), ("second", 63), (ODD, 31)):
        with tracker.run("fraud", name=name, params={"leaves": leaves, "note": ODD}) as run:
            run.log_history("loss", [1.0, 0.5, 0.25] if leaves == 31 else np.linspace(2.0, 0.0, 3_000))
            run.log_metrics({"auc": 0.9})
        ids.append(run.run_id)
    return home, ids


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(run_app, [str(item) for item in arguments])
    # Errors come as one message, never as a traceback.
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_commands(tracked: tuple[Path, list[str]]) -> None:
    home, ids = tracked
    told = run("list", "--home", home).stdout
    assert all(text in told for text in ("first", "second", ODD, ids[0][:8], "auc"))
    assert len(json.loads(run("list", "--home", home, "--filter", "params.leaves = '63'", "--json").stdout)) == 1
    shown = run("show", ids[0][:8], "--home", home, "--metric", "loss").stdout
    assert "3 points, 0.25 to 1, last 0.25" in shown
    assert ODD in shown
    assert json.loads(run("show", ids[0], "--home", home, "--metric", "loss", "--json").stdout)["history"][
        "values"
    ] == [
        1.0,
        0.5,
        0.25,
    ]
    side = run("compare", *ids[:2], "--home", home).stdout
    assert "leaves" in side
    assert "note" not in side
    assert "note" in run("compare", *ids[:2], "--all", "--home", home).stdout
    assert json.loads(run("compare", *ids[:2], "--home", home, "--json").stdout)["params"]["leaves"] == ["31", "63"]


def test_what_a_command_cannot_do_is_one_message(tracked: tuple[Path, list[str]], tmp_path: Path) -> None:
    home, ids = tracked
    assert run("list", "--home", tmp_path).stdout == "no runs\n"
    for command in (("list",), ("show", "ffffffff")):
        absent = run(*command, "--home", tmp_path / "absent")
        assert (absent.exit_code, "home" in absent.stderr) == (2, True)
    assert list(tmp_path.glob("absent")) == []
    for arguments, text in (
        (("show", "ffffffff"), "run 'ffffffff' does not exist"),
        (("show", ids[0], "--metric", "gain"), "'gain' does not exist"),
        (("compare", ids[0]), "RUN: got"),
        (("list", "--filter", "metrics."), "--filter: got"),
        (("list", "--experiment", "none"), "there is: "),
    ):
        result = run(*arguments, "--home", home)
        assert result.exit_code == 2
        assert text in result.stderr


def test_pages(tracked: tuple[Path, list[str]], tmp_path: Path) -> None:
    home, ids = tracked
    listed = check_markup(get(home, "/runs").text)
    assert ODD in listed.text
    assert ODD in check_markup(get(home, "/runs?experiment=fraud").text).text
    one = check_markup(get(home, f"/runs/{ids[2]}").text)
    assert ODD in one.text
    assert one.elements.count("polyline") == 1
    side = check_markup(get(home, f"/runs/compare?run={ids[0]}&run={ids[1]}&run={ids[2]}").text)
    assert side.elements.count("polyline") == 3
    # What the form of the page of runs sends where no third is chosen.
    assert get(home, f"/runs/compare?run={ids[0]}&run={ids[1]}&run=").status == 200
    assert "differs" in side.text
    assert get(home, "/runs?experiment=none").status == 404
    assert get(home, "/runs/ffffffff").status == 404
    assert get(home, f"/runs/compare?run={ids[0]}").status == 422
    assert get(home, f"/runs/compare?run={ids[0]}&run={ids[0]}").status == 422
    assert "No run was logged yet" in get(tmp_path, "/runs").text
    assert list(tmp_path.iterdir()) == []


def test_runs_whose_store_is_damaged(tracked: tuple[Path, list[str]], tmp_path: Path) -> None:
    shutil.copy(tracked[0] / "mlflow.db", tmp_path / "mlflow.db")
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1_000)
    assert get(tmp_path, "/runs").status == 503


def test_a_drawing_keeps_extremes_and_gaps() -> None:
    values = np.zeros(100_000)
    values[50_000], values[70_000], values[20_000] = 9.0, -1.0, np.nan
    history = MetricHistory(
        run_id="r" * 32, metric="loss", steps=np.arange(100_000), values=values, times=np.zeros(100_000, dtype=np.int64)
    )
    (chart,) = drawings([history])
    assert chart.y_labels == ("9", "4", "−1")
    assert len(chart.lines[0].pieces) == 2
    points = [point for piece in chart.lines[0].pieces for point in piece.split()]
    assert len(points) < 1_000
    assert {"50.00,0.00", "70.00,100.00"} <= set(points)
    flat = MetricHistory(
        run_id="r", metric="x", steps=np.array([3]), values=np.array([2.0]), times=np.zeros(1, dtype=np.int64)
    )
    assert drawings([flat])[0].lines[0].pieces == ("0.00,50.00",)


def test_a_long_history_is_thinned(tracked: tuple[Path, list[str]]) -> None:
    home, ids = tracked
    seen = runs_beside(home, [ids[1]])
    (loss,) = (drawn for drawn in seen.drawn if drawn.metric == "loss")
    assert len(loss.charts[0][1].lines[0].pieces[0].split()) <= 482
    assert seen.side is None
