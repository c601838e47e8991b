"""Our server of the models in a folder, its log on: `python _oip_server.py MODELS LOG PORT [COLUMNS [WAYS]]`.

With COLUMNS above 0 rows of so many numbers are checked against a contract. WAYS is a JSON object of what `Hosted`
takes, `queue` and `deadline`. The folder is followed for new versions.
"""

import contextlib
import json
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np

from vitok import contracts
from vitok.serving import FolderCatalogue, Hosted, InferenceLog, ModelHost, serve
from vitok.serving.inference import Breach
from vitok.serving.inference_http import inference_application

FOLLOW_SECONDS = 0.1


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

    def dress(hosted: Hosted) -> None:
        if "queue" in options:
            # The host makes it before it is dressed.
            hosted.__init__(hosted.name, hosted.runtime, **options)  # type: ignore[misc]
        if names:
            check = contract(names).matrix_checker(names)

            def rules(X: np.ndarray) -> list[Breach]:
                return [(row, found.field, found.message) for row, found in check(X)]

            hosted.rules = rules
            hosted.recorder = InferenceLog(Path(log) / hosted.name, system=hosted.name, features=names)

    host = ModelHost(FolderCatalogue(Path(models)), dress=dress, pinned=sorted(p.name for p in Path(models).iterdir()))
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

    serve(
        inference_application(host, lifespan=lifespan), list(host.endpoints.values()), port=int(port), max_body=1 << 20
    )
    host.close()


if __name__ == "__main__":
    main()
