"""Ten million requests over HTTP to a whole server, contract check and log on: what its memory and descriptors do."""

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.features._claim import path, tell  # noqa: E402
from bench.serving import _forest  # noqa: E402
from bench.serving._serve import SCALE, served  # noqa: E402
from scipy.stats import theilslopes  # noqa: E402

from vitok.serving.load import run_load  # noqa: E402

REQUESTS = max(round(10_000_000 * SCALE), 200_000)
# A request that left one object behind would leave more than fifty.
BAR_BYTES = 1.0
TURN_SECONDS = 10.0
CONNECTIONS = 64
SAMPLE_SECONDS = 0.25
# A segment of the log that is being sealed at the moment of the last look.
OPEN_SEGMENTS = 2
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Sampler(threading.Thread):
    """Reads resident memory without mapped files, and open descriptors, of a process."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.folder = Path(f"/proc/{pid}")
        self.stop = threading.Event()
        self.times: list[float] = []
        self.bytes: list[int] = []
        self.files: list[int] = []

    def run(self) -> None:
        while not self.stop.wait(SAMPLE_SECONDS):
            # The log of decisions and the models are mapped files: what is shared does not count.
            fields = (self.folder / "statm").read_text(encoding="ascii").split()
            self.times.append(time.monotonic())
            self.bytes.append((int(fields[1]) - int(fields[2])) * _PAGE)
            self.files.append(sum(1 for _ in (self.folder / "fd").iterdir()))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = _forest.prepare(folder)
        with served(_forest.ours(folder), _forest.INFER, rows, variables={"PYTHONPATH": path()}) as server:
            sampler = Sampler(server.pid)
            sampler.start()
            # A look at it while nobody is connected.
            time.sleep(4 * SAMPLE_SECONDS)
            turns: list[tuple[float, int]] = [(time.monotonic(), 0)]
            asked = failed = 0
            began = time.monotonic()
            while asked < REQUESTS:
                # New connections with each turn: they must not be left behind either.
                report = run_load(server.target, rate=None, seconds=TURN_SECONDS, connections=CONNECTIONS)
                asked += report.answered
                failed += report.failed
                turns.append((time.monotonic(), asked))
            took = time.monotonic() - began
            time.sleep(4 * SAMPLE_SECONDS)
            sampler.stop.set()
            sampler.join()
    done = np.interp(sampler.times, [at for at, _ in turns], [count for _, count in turns])
    # The first half fills caches, pools and histograms.
    half = done >= asked / 2
    used = np.array(sampler.bytes, float)
    slope, _, low, high = theilslopes(used[half], done[half], 0.95)
    files = np.array(sampler.files)
    more_files = int(files[-1]) - int(files[0])
    tell(
        "growth of the server's own memory over ten million requests, contract check and log on",
        value=float(slope),
        unit="bytes a request",
        bar=f"<= {BAR_BYTES:g}; no descriptor left behind; 0 failed",
        met=slope <= BAR_BYTES and more_files <= OPEN_SEGMENTS and not failed,
        n=asked,
        protocol=(
            f"LightGBM of 200 trees, one row a request, closed loop of {CONNECTIONS} connections that are made anew "
            f"every {TURN_SECONDS:g} s, {asked / took:,.0f}/s. Resident memory less what is shared, {len(used):,} "
            f"samples: {used[0] / 2**20:.1f} MiB at the start, {np.median(used[half]) / 2**20:.1f} in the second half, "
            f"{used[-1] / 2**20:.1f} at the end, {used.max() / 2**20:.1f} at most; slope over the second half by Theil "
            f"and Sen, 95 % of {low:.3g} to {high:.3g}. Descriptors {files[0]} before, {files.max()} at most, "
            f"{files[-1]} at the end. {failed} failed."
        ),
    )


if __name__ == "__main__":
    main()
