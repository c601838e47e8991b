"""A process that takes a stream in is killed at random moments: its state and offsets are those of one left alone."""

import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.features import stream_writer

from vitok.engines import LmdbStore, MemoryStore
from vitok.features import OnlineFeatures

N_BATCHES = 1_500


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_killed_streams_end_as_one_left_alone(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    kills, acknowledged = 0, 0
    while True:
        command = [sys.executable, stream_writer.__file__, str(tmp_path), str(seed), str(N_BATCHES)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            first = child.stdout.readline()
            timer = threading.Timer(rng.uniform(0.0, 0.8), child.kill)
            timer.start()
            rest = child.stdout.read()
            timer.cancel()
        lines = (first + rest).split("\n")
        acknowledged = max([acknowledged, *(int(line) for line in lines[:-1])])
        if child.returncode == 0:
            break
        kills += 1
        store = LmdbStore(tmp_path)
        kept = OnlineFeatures(stream_writer.FEATURES, store, lateness=stream_writer.LATENESS).positions()["next"]
        store.close()
        assert kept >= acknowledged
    assert kills >= 3
    store = LmdbStore(tmp_path)
    survivor = OnlineFeatures(stream_writer.FEATURES, store, lateness=stream_writer.LATENESS, journal=True)
    alone = OnlineFeatures(stream_writer.FEATURES, MemoryStore(), lateness=stream_writer.LATENESS)
    for number in range(N_BATCHES):
        alone.ingest("payments", stream_writer.batch(seed, number))
    assert survivor.positions() == {"next": N_BATCHES}
    assert survivor.newest == alone.newest
    got, wanted = (stream_writer.vectors(online, N_BATCHES) for online in (survivor, alone))
    exact = np.concatenate([view.plan.is_exact for view in stream_writer.FEATURES.windowed])
    np.testing.assert_array_equal(got[:, exact], wanted[:, exact])
    np.testing.assert_allclose(got[:, ~exact], wanted[:, ~exact], rtol=1e-9)
    store.close()
