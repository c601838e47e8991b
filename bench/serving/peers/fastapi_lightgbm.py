"""FastAPI on uvicorn with the library's own predict: `python fastapi_lightgbm.py MODEL PORT`."""

import sys

import lightgbm
import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

booster = lightgbm.Booster(model_file=sys.argv[1])
app = FastAPI()


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Request(BaseModel):
    inputs: list[Tensor]
    id: str = ""


@app.post("/v2/models/fraud/infer")
async def infer(request: Request) -> dict:
    tensor = request.inputs[0]
    score = booster.predict(np.array(tensor.data).reshape(tensor.shape), num_threads=1)
    output = {"name": "score", "datatype": "FP64", "shape": [len(score)], "data": score.tolist()}
    return {"model_name": "fraud", "model_version": "1", "outputs": [output]}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", access_log=False)
