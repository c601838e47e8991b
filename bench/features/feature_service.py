"""The feature service over HTTP, one request after another: one entity and a hundred, against Feast's server."""

import statistics
import tempfile

from bench.features import _data, _feast, _http
from bench.features._claim import tell

BARS = {1: 0.6, 100: 2.0}
ROUNDS = 5


def main() -> None:
    seconds = max(0.5, _data.scaled(4))
    medians: dict[tuple[str, int], float] = {}
    p99: dict[tuple[str, int], float] = {}
    n = bad = 0
    with (
        tempfile.TemporaryDirectory(prefix="vitok-bench-") as folder,
        _http.our_server(folder) as our_port,
        _http.feast_server() as feast_port,
    ):
        for size in BARS:
            sides = {
                "ours": (our_port, _http.our_requests(size)),
                "feast": (feast_port, _http.feast_requests(size)),
            }
            bad += sum(_http.wrong(port, requests[0], size) for port, requests in sides.values())
            loads = _http.alternating(sides, connections=1, seconds=seconds, rounds=ROUNDS)
            for name, found in loads.items():
                medians[name, size] = statistics.median(load.median for load in found)
                p99[name, size] = statistics.median(load.p99 for load in found)
            n += sum(load.n for load in loads["ours"])
    tell(
        "feature service over HTTP, 20 features of one entity",
        value=medians["ours", 1],
        unit="ms",
        peer=f"{_feast.name()}, feast serve on SQLite",
        peer_value=medians["feast", 1],
        ratio=medians["feast", 1] / medians["ours", 1],
        bar=f"<= {BARS[1]:g} ms; a hundred entities <= {BARS[100]:g} ms",
        met=bad == 0 and all(medians["ours", size] <= bar for size, bar in BARS.items()),
        n=n,
        protocol=(
            f"One process each, one connection over the loopback, values with event times and states, {ROUNDS} "
            f"alternating rounds of {seconds:g} s: median of the rounds' medians. A hundred entities: "
            f"{medians['ours', 100]:.2f} ms, Feast {medians['feast', 100]:.1f} ms "
            f"({medians['feast', 100] / medians['ours', 100]:.0f} x). P99: ours {p99['ours', 1]:.2f} and "
            f"{p99['ours', 100]:.2f} ms, Feast {p99['feast', 1]:.1f} and {p99['feast', 100]:.1f} ms. {bad} values of "
            "either differ from the newest rows."
        ),
    )


if __name__ == "__main__":
    main()
