"""The two HTTP services that hand out the twenty values of W-PIT: Feast's and ours, one process each."""

import contextlib
import http.client
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from bench._server import free_port, started
from bench.features import _claim, _data, _feast
from bench.features._load import Load, load, post

N_REQUESTS = 200
CONNECTIONS = (1, 2, 4, 8, 16, 32, 64)


def keys(size: int) -> list[list[int]]:
    """Draws the entities of each request, the same for both services."""
    rng = np.random.default_rng(size)
    return rng.integers(0, _data.scaled(100_000, 100), (N_REQUESTS, size)).tolist()


def feast_requests(size: int) -> list[bytes]:
    """Writes what Feast's server is asked: `size` entities, all twenty features."""
    features = [f"pit:{name}" for name in _data.FEATURES]
    return [
        post("/get-online-features", json.dumps({"features": features, "entities": {"entity_id": chosen}}).encode())
        for chosen in keys(size)
    ]


def our_requests(size: int) -> list[bytes]:
    """Writes what our service is asked: the same entities, with the details by view that Feast's answers hold too."""
    return [
        post("/v1/features/pit/vectors", json.dumps({"keys": {"entity_id": chosen}, "details": True}).encode())
        for chosen in keys(size)
    ]


@contextlib.contextmanager
def feast_server() -> Iterator[int]:
    """Runs Feast's Python server with one worker on its SQLite store, and gives its port."""
    folder = _feast.filled_sqlite()
    port = free_port()
    tool = _feast.python().with_name("feast")
    options = ["--host", "127.0.0.1", "--port", str(port), "--no-access-log", "--workers", "1"]
    # Feast restarts a worker after a thousand requests unless told otherwise.
    command = [str(tool), "-c", str(folder), "serve", *options, "--max-requests", "1000000000"]
    with started(command, port, folder=Path(folder)):
        yield port


@contextlib.contextmanager
def our_server(folder: str) -> Iterator[int]:
    """Fills LMDB in a folder, runs our service on it as one process, and gives its port."""
    from bench.features import _online

    store = f"lmdb://{folder}/rows"
    _online.fill(store, _online.features())
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name("_serve.py")), store, str(port)]
    with started(command, port, variables={"PYTHONPATH": _claim.path()}):
        yield port


def values(port: int, request: bytes) -> np.ndarray:
    """Asks one of `our_requests` or `feast_requests` and returns the values, shape (size, 20), float32."""
    head, _, body = request.partition(b"\r\n\r\n")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", head.split()[1].decode(), body, {"content-type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    if "results" not in answer:
        return np.array(answer["values"], np.float32)
    columns = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
    return np.array([columns[name]["values"] for name in _data.FEATURES], np.float32).T


def wrong(port: int, request: bytes, size: int) -> int:
    """Counts values of an answer to the first request of a size that are not those of the newest rows."""
    from bench.features import _online

    truth = {row[0]: row[1:] for row in _online.newest().iter_rows()}
    expected = np.array([truth[key] for key in keys(size)[0]], np.float32)
    return int((values(port, request) != expected).sum())


def alternating(
    sides: dict[str, tuple[int, list[bytes]]], *, connections: int, seconds: float, rounds: int
) -> dict[str, list[Load]]:
    """Loads several servers in turn.

    Args:
        sides: By name: port and requests.
        connections: As for `load`.
        seconds: Of each round.
        rounds: How often each is loaded.

    Returns:
        By name the loads of all rounds.
    """
    found: dict[str, list[Load]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (port, requests) in sides.items():
            found[name].append(load(port, requests, connections=connections, seconds=seconds))
    return found
