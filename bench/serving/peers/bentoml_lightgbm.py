"""BentoML, one worker: `bentoml serve bentoml_lightgbm:Fraud --port PORT`, the model's file in BENCH_MODEL."""

import os

import bentoml
import lightgbm
import numpy as np


@bentoml.service(workers=1, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Fraud:
    def __init__(self) -> None:
        self.booster = lightgbm.Booster(model_file=os.environ["BENCH_MODEL"])

    @bentoml.api(route="/v2/models/fraud/infer")
    def infer(self, inputs: list[dict]) -> dict:
        tensor = inputs[0]
        score = self.booster.predict(np.array(tensor["data"]).reshape(tensor["shape"]), num_threads=1)
        output = {"name": "score", "datatype": "FP64", "shape": [len(score)], "data": score.tolist()}
        return {"model_name": "fraud", "model_version": "1", "outputs": [output]}
