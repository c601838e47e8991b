"""Notes which version of a model answers while versions change under load, and how long one is still heard."""

import http.client
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from bench.serving._serve import SCALE, Served

from vitok.serving.load_report import LoadReport

RATE, GAP_SECONDS, BAR_SECONDS = 5_000.0, 2.0, 1.0
_PROBES, _PAUSE_SECONDS = 4, 0.01


class _Probe(threading.Thread):
    def __init__(self, url: str, body: bytes, stop: threading.Event) -> None:
        super().__init__()
        parts = urllib.parse.urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        self.path, self.body, self.stop = parts.path, body, stop
        self.seen: list[tuple[float, str]] = []
        self.failed = 0

    def run(self) -> None:
        while not self.stop.wait(_PAUSE_SECONDS):
            self.connection.request("POST", self.path, self.body, {"content-type": "application/json"})
            reply = self.connection.getresponse()
            content = reply.read()
            if reply.status != 200:
                self.failed += 1
            else:
                self.seen.append((time.monotonic(), json.loads(content)["model_version"]))
        self.connection.close()


class Probes:
    """Asks a server all the time which version answers, while the block runs.

    Attributes:
        seen: When which version answered, in seconds of `time.monotonic`; there once the block has ended.
        failed: How many of these requests failed.
    """

    def __init__(self, url: str, bodies: Sequence[bytes]) -> None:
        self._stop = threading.Event()
        self._probes = [_Probe(url, bodies[number], self._stop) for number in range(_PROBES)]
        self.seen: list[tuple[float, str]] = []
        self.failed = 0

    def __enter__(self) -> Self:
        for probe in self._probes:
            probe.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for probe in self._probes:
            probe.join()
        self.seen = sorted(item for probe in self._probes for item in probe.seen)
        self.failed = sum(probe.failed for probe in self._probes)

    def heard(self, version: str, since: float, until: float) -> float:
        """Returns the seconds from a moment to the last answer of a version before another; 0 where it was silent."""
        return max([0.0, *(at - since for at, known in self.seen if known == version and since < at < until)])

    def answered(self, version: str, since: float, until: float) -> bool:
        """Says whether a version answered between two moments."""
        return any(known == version for at, known in self.seen if since < at < until)


def under_load(
    server: Served, bodies: Sequence[bytes], changes: Callable[[], None], turns: int
) -> tuple[LoadReport, Probes]:
    """Loads a server while something changes its versions, and watches who answers.

    Args:
        server: The server.
        bodies: Bodies of the probes' requests.
        changes: Changes versions, one every `GAP_SECONDS`.
        turns: How many changes it makes: the load is of one length at any scale, it is the changes that are fewer.
    """
    with Probes(server.target.url, bodies) as probes:
        changing = threading.Thread(target=changes)
        changing.start()
        report = server.load(RATE, (turns + 1) * GAP_SECONDS / min(SCALE, 1.0), connections=128)
        changing.join()
    return report, probes
