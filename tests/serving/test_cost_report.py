"""Cost reports, with sums made by hand."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vitok import decisions, ids
from vitok.clock import DAY, parse_time
from vitok.decisions import Constant
from vitok.errors import InvalidInput, NotFound
from vitok.serving.cost_report import BY, cost_report, log_folders
from vitok.serving.costs import Prices

START = parse_time("2026-01-01")


def write(folder: Path, rows: Sequence[dict[str, object]], *, name: str = "fraud") -> None:
    """Writes decisions that are alike but for what `rows` says of each."""
    log = decisions.DecisionLog(folder, decisions.LogSchema(name, (), (), ("x",)))
    n = len(rows)

    def column(key: str, default: object) -> list[object]:
        return [row.get(key, default) for row in rows]

    times = np.array(column("time", START), np.int64)
    none = Constant("none")
    log.append(
        decisions.DecisionBlock(
            decision_id=ids.uuid7s(n),
            request_id=[f"r{k}" for k in range(n)],
            event_time=times,
            ingest_time=times,
            entities=(),
            request=(),
            features=np.array(column("x", 0.0), np.float64).reshape(n, 1),
            feature_status=Constant("fresh"),
            model_version=column("version", "fraud/1"),  # type: ignore[arg-type]
            stage=Constant("Production"),
            route=column("route", "champion"),  # type: ignore[arg-type]
            route_reason=none,
            score=np.array(column("probability", 0.5), np.float64),
            probability=np.array(column("probability", 0.5), np.float64),
            shadow_version=column("shadow_version", None),  # type: ignore[arg-type]
            shadow_probability=np.array(column("shadow", math.nan), np.float64),
            policy_version=none,
            action=none,
            propensity=Constant(1.0),
            latency_us=np.full(n, 10, np.int32),
            cost=np.array(column("cost", 1e-3), np.float64),
            tenant=column("tenant", ""),  # type: ignore[arg-type]
            team=column("team", ""),  # type: ignore[arg-type]
        )
    )
    log.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows: list[dict[str, object]] = [
        {"cost": 0.002, "tenant": "web", "team": "checkout"},
        {"cost": 0.0, "tenant": "web", "team": "checkout"},
        {"cost": 0.004, "version": "fraud/2", "route": "canary", "tenant": "app", "team": "checkout"},
        {"cost": 0.006, "time": START + DAY},
        {"cost": math.nan, "version": "rules"},
    ]
    write(tmp_path / "log" / "fraud", rows)
    write(tmp_path / "log" / "spam" / "worker-0", [{"cost": 0.01, "version": "spam/1"}], name="spam")
    decisions.OutcomeLog(tmp_path / "log" / "outcomes").close()
    return tmp_path / "log"


def lines(folder: Path, by: str, **options: object) -> dict[str, tuple[int, int, float]]:
    found = cost_report(folder, by=by, **options)  # type: ignore[arg-type]
    return {line.key: (line.decisions, line.hits, round(line.seconds, 9)) for line in found.lines}


def test_sums_by_hand(folder: Path) -> None:
    assert lines(folder, "model") == {"fraud": (4, 1, 0.012), "spam": (1, 0, 0.01), "rules": (1, 0, 0.0)}
    assert lines(folder, "version") == {
        "fraud/1": (3, 1, 0.008),
        "fraud/2": (1, 0, 0.004),
        "spam/1": (1, 0, 0.01),
        "rules": (1, 0, 0.0),
    }
    assert lines(folder, "tenant") == {"": (3, 0, 0.016), "web": (2, 1, 0.002), "app": (1, 0, 0.004)}
    assert lines(folder, "team") == {"": (3, 0, 0.016), "checkout": (3, 1, 0.006)}
    assert lines(folder, "route") == {"champion": (5, 1, 0.018), "canary": (1, 0, 0.004)}
    assert lines(folder, "day") == {"2026-01-01": (5, 1, 0.016), "2026-01-02": (1, 0, 0.006)}


def test_the_dearest_first_and_the_total(folder: Path) -> None:
    found = cost_report(folder, by="model", prices=Prices(cpu_hour=3600, currency="EUR"))
    assert [line.key for line in found.lines] == ["fraud", "spam", "rules"]
    total = found.total
    assert (total.decisions, total.hits, total.unknown) == (6, 1, 1)
    assert total.money == pytest.approx(0.022)
    assert total.a_thousand == pytest.approx(1000 * 0.022 / 5)
    assert found.lines[0].hit_share == 0.25
    assert math.isnan(found.lines[2].a_thousand)
    told = str(found)
    assert "EUR a 1,000" in told
    assert "1 decisions have no cost in the log" in told
    assert [line["key"] for line in found.to_dict()["lines"]] == ["fraud", "spam", "rules"]


def test_a_span(folder: Path) -> None:
    assert lines(folder, "model", since=START + DAY) == {"fraud": (1, 0, 0.006)}
    nothing = cost_report(folder, until=START)
    assert nothing.lines == ()
    assert nothing.total.decisions == 0
    assert math.isnan(nothing.total.hit_share)
    assert "all" in str(nothing)


def test_one_log_and_none(folder: Path, tmp_path: Path) -> None:
    assert [log.name for log in log_folders(folder)] == ["fraud", "worker-0"]
    assert log_folders(folder / "fraud") == [folder / "fraud"]
    with pytest.raises(NotFound):
        log_folders(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound):
        cost_report(tmp_path / "empty")
    with pytest.raises(InvalidInput, match=", ".join(BY)):
        cost_report(folder, by="colour")  # type: ignore[arg-type]
