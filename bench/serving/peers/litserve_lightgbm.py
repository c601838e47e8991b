"""LitServe, one API process and one worker: `python litserve_lightgbm.py MODEL PORT`."""

import sys

import lightgbm
import litserve
import numpy as np


class Fraud(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe passes it
        self.booster = lightgbm.Booster(model_file=sys.argv[1])

    def decode_request(self, request: dict) -> np.ndarray:
        tensor = request["inputs"][0]
        return np.array(tensor["data"]).reshape(tensor["shape"])

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.booster.predict(rows, num_threads=1)

    def encode_response(self, score: np.ndarray) -> dict:
        output = {"name": "score", "datatype": "FP64", "shape": [len(score)], "data": score.tolist()}
        return {"model_name": "fraud", "model_version": "1", "outputs": [output]}


if __name__ == "__main__":
    api = Fraud(api_path="/v2/models/fraud/infer")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=1,
        log_level="error",
        generate_client_file=False,
        access_log=False,
    )
