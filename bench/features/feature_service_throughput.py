"""Requests a second of the feature service at the P99 of Feast's server, at every load that the latter was given."""

import tempfile

from bench.features import _data, _feast, _http
from bench.features._claim import tell
from bench.features._load import at_equal_p99, load

BAR = 10.0
SIZES = (1, 100)


def main() -> None:
    seconds = max(0.5, _data.scaled(5))
    pairs = {}
    n = 0
    with (
        tempfile.TemporaryDirectory(prefix="vitok-bench-") as folder,
        _http.our_server(folder) as our_port,
        _http.feast_server() as feast_port,
    ):
        for size in SIZES:
            ours, theirs = [], []
            for connections in _http.CONNECTIONS:
                given = {"connections": connections, "seconds": seconds}
                ours.append(load(our_port, _http.our_requests(size), **given))
                theirs.append(load(feast_port, _http.feast_requests(size), **given))
            n += sum(found.n for found in ours)
            pairs[size] = at_equal_p99(ours, theirs)
    worst = min(pairs.values(), key=lambda pair: pair[2])
    details = "; ".join(
        f"{size} x 20: ours {mine.per_second:,.0f}/s at P99 {mine.p99:.2f} ms with {mine.connections} connections, "
        f"Feast {other.per_second:,.0f}/s at {other.p99:.2f} ms with {other.connections}: {ratio:.1f} x"
        for size, (mine, other, ratio) in pairs.items()
    )
    mine, other, ratio = worst
    tell(
        "feature service over HTTP, requests a second at equal P99",
        value=mine.per_second,
        unit="requests/s",
        peer=f"{_feast.name()}, feast serve on SQLite",
        peer_value=other.per_second,
        ratio=ratio,
        bar=f">= {BAR:g}",
        met=ratio >= BAR,
        n=n,
        protocol=(
            f"One process each on the loopback, {', '.join(map(str, _http.CONNECTIONS))} connections that each wait "
            f"for their answer, {seconds:g} s of each in turn; for each load of Feast's our fastest load of no larger "
            "P99, and of these pairs the least favourable one; the table has the worse of one and a hundred entities. "
            f"{details}."
        ),
    )


if __name__ == "__main__":
    main()
