"""What metrics cost a request: written down each second for all workers and read each second, against neither."""

import contextlib
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.features._claim import tell  # noqa: E402
from bench.serving._drive import median_interval  # noqa: E402
from bench.serving._side_by_side import CONNECTIONS, FEATURES, REQUESTS, ROUNDS, Service, in_turn  # noqa: E402
from bench.serving.tree_kernel import trained  # noqa: E402

from vitok.models.forest import Forest  # noqa: E402

BAR = 1.0
EVERY = 1.0
MODELS = 10


def serve_it(models: str, folder: str) -> None:
    """Serves the models of a folder, with metrics where a folder is given for them."""
    import asyncio
    import time
    from collections.abc import AsyncIterator

    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from vitok.serving import FolderCatalogue, Metrics, ModelHost, serve
    from vitok.serving.inference_http import watch
    from vitok.serving.metrics import CONTENT_TYPE
    from vitok.serving.shared_metrics import SharedMetrics

    catalogue = FolderCatalogue(Path(models))
    host = ModelHost(catalogue, pinned=catalogue.names(), queue=False)
    host.start()
    metrics = Metrics()
    watch(metrics, host)
    shared = SharedMetrics(folder, metrics) if folder else None

    async def spent(_: Any) -> PlainTextResponse:
        return PlainTextResponse(str(time.process_time()))

    async def expose(_: Any) -> PlainTextResponse:
        assert shared is not None
        return PlainTextResponse(shared.expose(), media_type=CONTENT_TYPE)

    @contextlib.asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        task = asyncio.create_task(shared.keep_published(every=EVERY)) if shared else None
        yield
        if task is not None:
            task.cancel()

    app = Starlette(routes=[Route("/spent", spent), Route("/metrics", expose)], lifespan=lifespan)
    serve(app, list(host.endpoints.values()), ready=lambda service: print(service.port, flush=True))
    host.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        models, folder = Path(name, "models"), Path(name, "metrics")
        forest = Forest.of(trained())
        for model in ("sum", *(f"other{place}" for place in range(1, MODELS))):
            (models / model / "1").mkdir(parents=True)
            forest.save(models / model / "1" / "model.forest")
        given = {"without": "", "with": str(folder)}
        services = {
            way: stack.enter_context(Service(__file__, (str(models), where), tensor="input"))
            for way, where in given.items()
        }
        stop = threading.Event()

        def scrape() -> None:
            while not stop.wait(EVERY):
                services["with"].ask("/metrics")

        text = services["with"].ask("/metrics")
        reader = threading.Thread(target=scrape)
        reader.start()
        try:
            # Long enough to hold several writes and reads.
            costs = in_turn(services, dict.fromkeys(services, 2 * REQUESTS))
        finally:
            stop.set()
            reader.join()
    added = [100 * (one / other - 1) for one, other in zip(costs["with"], costs["without"], strict=True)]
    low, high = median_interval(added)
    value = statistics.median(added)
    tell(
        "metrics written down and read each second, added to the processor time of a request",
        value=value,
        unit="%",
        bar=f"<= {BAR:g}",
        met=value <= BAR,
        n=2 * REQUESTS * ROUNDS,
        protocol=f"{MODELS} models of 200 trees, {text.count(b'{')} labelled series; one row of {FEATURES} numbers a "
        f"request in JSON to one of them, closed loop of {CONNECTIONS} connections without pipelining, a process each, "
        f"{ROUNDS} rounds in turn, forwards and backwards; median of the rounds' ratios, 95 % interval by order "
        f"statistics [{low:.2f}, {high:.2f}] %. {statistics.median(costs['without']):.2f} CPU-us a request without and "
        f"{statistics.median(costs['with']):.2f} with. What is counted in each batch is there both ways.",
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        serve_it(*sys.argv[1:])
    else:
        main()
