"""Twenty new versions and rollbacks at 5,000 requests a second: none fails, and the old version falls silent."""

import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.features._claim import path, tell  # noqa: E402
from bench.serving import _forest  # noqa: E402
from bench.serving._probes import BAR_SECONDS, GAP_SECONDS, RATE, under_load  # noqa: E402
from bench.serving._serve import SCALE, served  # noqa: E402

SWAPS = 20 if SCALE >= 1 else max(4, 2 * round(10 * SCALE))


def swap(model: Path, spare: Path, turns: list[tuple[float, str]]) -> None:
    """Brings version 2 and takes it back, in turn; notes when each was done, and which version was to go."""
    place = model / "2"
    for i in range(SWAPS):
        time.sleep(GAP_SECONDS)
        # A rename is whole or not at all.
        (spare if i % 2 == 0 else place).rename(place if i % 2 == 0 else spare)
        turns.append((time.monotonic(), "1" if i % 2 == 0 else "2"))


def main() -> None:
    turns: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = _forest.prepare(folder, versions=2)
        model, spare = folder / "models" / "fraud", folder / "spare"
        (model / "2").rename(spare)
        with served(_forest.ours(folder), _forest.INFER, rows, variables={"PYTHONPATH": path()}) as server:
            report, probes = under_load(server, rows, lambda: swap(model, spare, turns), SWAPS)
    ends = [*(at for at, _ in turns[1:]), float("inf")]
    silences = [probes.heard(old, at, after) for (at, old), after in zip(turns, ends, strict=True)]
    # Each turn has brought the other version, and not only silenced one.
    changed = [
        probes.answered("2" if old == "1" else "1", at, after) for (at, old), after in zip(turns, ends, strict=True)
    ]
    failed = report.failed + probes.failed
    tell(
        f"{len(turns)} swaps and rollbacks at {RATE:,.0f} requests a second",
        value=max(silences),
        unit="s until the old version is silent",
        bar=f"<= {BAR_SECONDS:g} s, 0 failed",
        met=max(silences) <= BAR_SECONDS and not failed and len(turns) == SWAPS and all(changed),
        n=report.offered + len(probes.seen),
        protocol=(
            f"LightGBM of 200 trees, contract check and log on; a version brought or taken back every {GAP_SECONDS:g} "
            f"s, the folder looked at ten times a second; Poisson arrivals. {failed} of {report.offered:,} failed, "
            f"{report.answered / report.seconds:,.0f}/s answered, {report.quantile(0.5)}, {report.quantile(0.99)}, "
            f"max {report.latency.max / 1e3:.3g} ms; {len(probes.seen):,} probes saw which version answers, the last "
            f"of the old one {sum(silences) / len(silences):.2f} s after the swap in the mean."
        ),
    )


if __name__ == "__main__":
    main()
