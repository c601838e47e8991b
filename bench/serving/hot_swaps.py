"""Twenty new versions and rollbacks at 5,000 requests a second: none fails, and the old version falls silent."""

import http.client
import json
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.features._claim import path, tell  # noqa: E402
from bench.serving import _forest  # noqa: E402
from bench.serving._serve import SCALE, served  # noqa: E402

RATE, GAP_SECONDS, BAR_SECONDS = 5_000.0, 2.0, 1.0
SWAPS = 20 if SCALE >= 1 else max(4, 2 * round(10 * SCALE))
PROBES, PROBE_SECONDS = 4, 0.01


class Probe(threading.Thread):
    """Notes which version answers: what was asked at a time, and is there at another."""

    def __init__(self, url: str, body: bytes, stop: threading.Event) -> None:
        super().__init__()
        parts = urllib.parse.urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        self.path, self.body, self.stop = parts.path, body, stop
        self.seen: list[tuple[float, str]] = []
        self.failed = 0

    def run(self) -> None:
        while not self.stop.wait(PROBE_SECONDS):
            self.connection.request("POST", self.path, self.body, {"content-type": "application/json"})
            reply = self.connection.getresponse()
            content = reply.read()
            if reply.status != 200:
                self.failed += 1
            else:
                self.seen.append((time.monotonic(), json.loads(content)["model_version"]))
        self.connection.close()


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
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = _forest.prepare(folder, versions=2)
        model, spare = folder / "models" / "fraud", folder / "spare"
        (model / "2").rename(spare)
        with served(_forest.ours(folder), _forest.INFER, rows, variables={"PYTHONPATH": path()}) as server:
            probes = [Probe(server.target.url, rows[i], stop) for i in range(PROBES)]
            changes = threading.Thread(target=swap, args=(model, spare, turns))
            for thread in (*probes, changes):
                thread.start()
            # The load is of one length at any scale: it is the swaps that are fewer.
            report = server.load(RATE, (SWAPS + 1) * GAP_SECONDS / min(SCALE, 1.0), connections=128)
            changes.join()
            stop.set()
            for probe in probes:
                probe.join()
    seen = sorted(item for probe in probes for item in probe.seen)
    ends = [*(at for at, _ in turns[1:]), float("inf")]
    silences = [
        max([0.0, *(at - moment for at, version in seen if version == old and moment < at < after)])
        for (moment, old), after in zip(turns, ends, strict=True)
    ]
    # Each turn has brought the other version, and not only silenced one.
    changed = [
        any(version != old for at, version in seen if moment < at < after)
        for (moment, old), after in zip(turns, ends, strict=True)
    ]
    failed = report.failed + sum(probe.failed for probe in probes)
    tell(
        f"{len(turns)} swaps and rollbacks at {RATE:,.0f} requests a second",
        value=max(silences),
        unit="s until the old version is silent",
        bar=f"<= {BAR_SECONDS:g} s, 0 failed",
        met=max(silences) <= BAR_SECONDS and not failed and len(turns) == SWAPS and all(changed),
        n=report.offered + len(seen),
        protocol=(
            f"LightGBM of 200 trees, contract check and log on; a version brought or taken back every {GAP_SECONDS:g} "
            f"s, the folder looked at ten times a second; Poisson arrivals. {failed} of {report.offered:,} failed, "
            f"{report.answered / report.seconds:,.0f}/s answered, {report.quantile(0.5)}, {report.quantile(0.99)}, "
            f"max {report.latency.max / 1e3:.3g} ms; {len(seen):,} probes saw which version answers, the last of the "
            f"old one {sum(silences) / len(silences):.2f} s after the swap in the mean."
        ),
    )


if __name__ == "__main__":
    main()
