"""Our server of the models in a folder, its log on: `python _oip_server.py MODELS LOG PORT [COLUMNS [WAYS]]`.

With COLUMNS above 0 rows of so many numbers are checked against a contract. WAYS is a JSON object of what `Hosted`
takes, `queue` and `deadline`, and of what `serve` takes, `max_batch`. The folder is followed for new versions.
With `watched` refusals are timed, `GET /bench` tells what has happened since it was asked the last time, and
`POST /refuse` refuses whatever comes, so that it is seen what the client and the wire take by themselves.
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from vitok import contracts
from vitok.serving import FolderCatalogue, Hosted, HotRequest, InferenceLog, ModelHost, Reply, serve
from vitok.serving.door import MAX_BATCH
from vitok.serving.inference import Breach
from vitok.serving.inference_http import inference_application
from vitok.serving.messages import Endpoint, Later
from vitok.stats import LatencyHistogram

FOLLOW_SECONDS = 0.1
REFUSALS = (429, 503)


class Watched:
    """An endpoint whose refusals are timed from the last byte of the request until the reply is there."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.path = endpoint.path
        self.refused = LatencyHistogram()

    def handle(self, requests: Sequence[HotRequest]) -> Sequence[Reply | Later]:
        """Answers as the endpoint does."""
        replies = self.endpoint.handle(requests)
        refused = [
            request.arrived
            for request, reply in zip(requests, replies, strict=True)
            if type(reply) is Reply and reply.status in REFUSALS
        ]
        if refused:
            self.refused.record_since(refused, time.perf_counter_ns())
        return replies


class Refusing:
    """Refuses all at once."""

    path = "/refuse"

    def handle(self, requests: Sequence[HotRequest]) -> Sequence[Reply | Later]:
        """Answers 503."""
        return [_REFUSED] * len(requests)


_REFUSED = Reply(503, b'{"status":503}', b"retry-after: 1\r\n")


def contract(names: list[str]) -> contracts.Contract:
    limits = {"minimum": -50, "maximum": 50}
    fields = [{"name": name, "logicalType": "number", "logicalTypeOptions": limits} for name in names]
    document = {
        "apiVersion": "v3.0.2",
        "kind": "DataContract",
        "id": "bench",
        "version": "1.0.0",
        "status": "active",
        "schema": [{"name": "rows", "properties": fields}],
    }
    return contracts.load(json.dumps(document, indent=1))


def main() -> None:
    models, log, port, columns, ways = (*sys.argv[1:], *("0", "{}")[len(sys.argv) - 4 :])
    names = [f"f{i}" for i in range(int(columns))]
    options: dict[str, Any] = json.loads(ways)
    max_batch, watching = options.pop("max_batch", MAX_BATCH), options.pop("watched", False)

    def dress(hosted: Hosted) -> None:
        if names:
            check = contract(names).matrix_checker(names)

            def rules(X: np.ndarray) -> list[Breach]:
                return [(row, found.field, found.message) for row, found in check(X)]

            hosted.rules = rules
            hosted.recorder = InferenceLog(Path(log) / hosted.name, system=hosted.name, features=names)

    pinned = sorted(place.name for place in Path(models).iterdir())
    host = ModelHost(FolderCatalogue(Path(models)), dress=dress, pinned=pinned, **options)
    host.start()
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(FOLLOW_SECONDS):
            host.follow()

    @contextlib.asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        threading.Thread(target=follow, daemon=True).start()
        yield
        stop.set()

    watched = [Watched(endpoint) for endpoint in host.endpoints.values()] if watching else []
    before = {"batches": 0, "expired": 0}

    async def seen(_: Request) -> JSONResponse:
        refused, answered = LatencyHistogram(), LatencyHistogram()
        counts = {"batches": 0, "expired": 0}
        for item in watched:
            refused.merge(item.refused)
            item.refused = LatencyHistogram()
        for hosted in host.loaded():
            queue, latency = hosted.queue, hosted.latency
            hosted.latency = LatencyHistogram()
            answered.merge(latency)
            if queue is not None:
                counts["batches"] += queue.batches
                counts["expired"] += queue.expired
        since = {name: count - before[name] for name, count in counts.items()}
        before.update(counts)
        return JSONResponse({"refused": refused.to_dict(), "answered": answered.to_dict(), **since})

    app = inference_application(host, lifespan=lifespan)
    app.router.routes.append(Route("/bench", seen))
    serve(
        app,
        [*watched, Refusing()] if watched else list(host.endpoints.values()),
        port=int(port),
        max_body=1 << 20,
        max_batch=max_batch,
    )
    host.close()


if __name__ == "__main__":
    main()
