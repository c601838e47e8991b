"""How long a version that was rolled back still answers, at 5,000 requests a second, and whether one of them failed.

`python -m bench.loop.rollback`: `vitok serve-models` follows the Production stage of a registry; the alarm, the ledger
and the records are this process.
"""

import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.features._claim import path, tell  # noqa: E402
from bench.serving._forest import INFER  # noqa: E402
from bench.serving._probes import BAR_SECONDS, GAP_SECONDS, RATE, under_load  # noqa: E402
from bench.serving._serve import SCALE, served  # noqa: E402
from bench.serving.tree_kernel import N_FEATURES, trained  # noqa: E402

from vitok.clock import SystemClock  # noqa: E402
from vitok.loop import Records, push, roll_back  # noqa: E402
from vitok.models.convert import convert  # noqa: E402
from vitok.registry import Registry  # noqa: E402
from vitok.serving import Runtime  # noqa: E402
from vitok.serving.load import varied  # noqa: E402

NOW = SystemClock().now
TURNS = max(3, round(10 * SCALE))


def prepare(registry: Registry) -> list[bytes]:
    """Registers two versions of the model, and returns bodies with rows that differ."""
    rows = np.random.default_rng(5).normal(size=(500, N_FEATURES))
    files = convert(trained(), rows).files()
    for number in (1, 2):
        registry.register("fraud", files, actor="bench", reason=f"version {number}", now=NOW())
    name = Runtime.load(registry.load("fraud", 1)).inputs[0].name
    head = f'{{"inputs":[{{"name":"{name}","shape":[1,{N_FEATURES}],"datatype":"FP64","data":[$ROW]}}]}}'
    return varied(head, width=N_FEATURES)


def turns(registry: Registry, records: Records, alarms: list[float], named: list[float]) -> None:
    """Puts version 2 into Production and rolls it back, in turn; notes when the alarm came."""
    alarm = SimpleNamespace(reason="failures rose")
    for _ in range(TURNS):
        time.sleep(GAP_SECONDS)
        push(registry, records, "fraud", 2, override="to be rolled back", now=NOW(), actor="bench")
        time.sleep(GAP_SECONDS)
        alarms.append(time.monotonic())
        named.append(roll_back(registry, records, "fraud", alarm, expected=2, now=NOW(), actor="bench"))


def main() -> None:
    """Runs the load and the roll backs, and prints the line."""
    alarms: list[float] = []
    named: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        registry, records = Registry(home), Records(home)
        bodies = prepare(registry)
        push(registry, records, "fraud", 1, override="the first", now=NOW(), actor="bench")
        command = [sys.executable, "-m", "vitok", "serve-models", "--home", str(home), "--port", "{port}"]
        command += ["--log", str(home / "log")]
        with served(command, INFER, bodies, variables={"PYTHONPATH": path()}) as server:
            report, probes = under_load(server, bodies, lambda: turns(registry, records, alarms, named), 2 * TURNS)
        registry.close()
    silences = [probes.heard("2", alarm, alarm + GAP_SECONDS) for alarm in alarms]
    # Before each alarm version 2 did answer, and after it version 1 did.
    changed = [
        probes.answered("2", alarm - GAP_SECONDS, alarm) and probes.answered("1", alarm, alarm + GAP_SECONDS)
        for alarm in alarms
    ]
    failed = report.failed + probes.failed
    tell(
        f"{len(alarms)} roll backs by the registry at {RATE:,.0f} requests a second",
        value=max(silences),
        unit="s from the alarm to the last answer of the version rolled back",
        bar=f"<= {BAR_SECONDS:g} s, 0 failed",
        met=max(silences) <= BAR_SECONDS and not failed and len(alarms) == TURNS and all(changed),
        n=report.offered + len(probes.seen),
        protocol=(
            f"LightGBM of 200 trees, decision log on, `vitok serve-models --home`, Poisson arrivals. {failed} of "
            f"{report.offered:,} failed, {report.answered / report.seconds:,.0f}/s answered, {report.quantile(0.5)}, "
            f"{report.quantile(0.99)}; the ledger named the earlier version after "
            f"{1e3 * float(np.median(named)):.1f} ms in the median, {1e3 * max(named):.1f} at most; the last answer "
            f"of the other came {float(np.mean(silences)):.2f} s after the alarm in the mean of "
            f"{len(probes.seen):,} probes."
        ),
    )


if __name__ == "__main__":
    main()
