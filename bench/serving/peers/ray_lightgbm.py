"""Ray Serve, one replica behind one proxy: `python ray_lightgbm.py MODEL PORT FOLDER`; Ray's files go to FOLDER."""

import signal
import sys
import threading

import lightgbm
import numpy as np
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=100)
class Fraud:
    def __init__(self, path: str) -> None:
        self.booster = lightgbm.Booster(model_file=path)

    async def __call__(self, request: Request) -> dict:
        tensor = (await request.json())["inputs"][0]
        score = self.booster.predict(np.array(tensor["data"]).reshape(tensor["shape"]), num_threads=1)
        output = {"name": "score", "datatype": "FP64", "shape": [len(score)], "data": score.tolist()}
        return {"model_name": "fraud", "model_version": "1", "outputs": [output]}


def main() -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
        _temp_dir=sys.argv[3],
        _node_ip_address="127.0.0.1",
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(sys.argv[2])}, logging_config={"enable_access_log": False}
    )
    serve.run(Fraud.bind(sys.argv[1]), route_prefix="/v2/models/fraud/infer")
    stop.wait()
    ray.shutdown()


if __name__ == "__main__":
    main()
