"""Events a second of the embedded stream engine when state is committed every ten milliseconds."""

from bench.features import _claim, _data, stream_throughput

EVENTS_A_SECOND = 100_000
PAUSE = 0.010
BATCH = int(EVENTS_A_SECOND * PAUSE)


def judge() -> None:
    n = _data.scaled(1_000_000, 20_000)
    found = stream_throughput.runs(n, batch=BATCH, checkpoint_every=500, deadline=PAUSE)
    fresh = n - n // 50
    value = n / _claim.median(found, "cpu")
    late = _claim.median(found, "n_late") / found[0]["n_batches"]
    _claim.tell(
        "the same stream, its state committed every 10 ms",
        value=value,
        unit="events / CPU s",
        bar=">= 100,000",
        met=value >= EVENTS_A_SECOND and all(result["n_new"] == fresh for result in found),
        n=n,
        protocol=(
            f"Median of {stream_throughput.RUNS} runs, the process kept on one core: what comes in 10 ms at 100,000 "
            f"events/s ({BATCH:,} events) is one batch, in LMDB with its positions before it counts; a checkpoint of "
            f"all changed keys every 500 batches. By the wall clock {n / _claim.median(found, 'wall'):,.0f} events/s; "
            f"{late:.1%} of the batches took longer than 10 ms, the longest, with a checkpoint, "
            f"{1_000 * _claim.median(found, 'longest'):,.0f} ms."
        ),
    )


if __name__ == "__main__":
    _claim.main(judge, stream_throughput.ours)
