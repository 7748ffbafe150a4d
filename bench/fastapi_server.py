"""`python fastapi_server.py BUNDLE PORT WORKERS`: the server that a user would write for the model of a bundle.

A tensor in, outputs out, a forward pass a request. It runs in an environment of its own, with the platform's torch and
library for user programs: the model is built and asked by the very code that Triton runs. One worker is left to torch's
own choice of threads, as it comes; several have one thread each.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request

LIBRARIES = Path(__file__).resolve().parents[1] / "libs"
sys.path += [str(LIBRARIES / name) for name in ("sdk", "recordkit", "workerkit", "contracts", "caffe_nets")]

from dlmesh_sdk import served  # noqa: E402

DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64}

app = FastAPI()
model = served.load(Path(os.environ.get("BUNDLE") or sys.argv[1]))
tensor = served.describe(model.serving).inputs[0]
module = model.build_model()
weights = Path(os.environ.get("BUNDLE") or sys.argv[1]) / "model_epoch_final.pth"
module.load_state_dict(torch.load(weights, weights_only=True))
module.eval()
if os.environ.get("WORKERS") != "1":
    torch.set_num_threads(1)


@app.post("/predict")
async def predict(request: Request) -> dict[str, list[float]]:
    """The body is one tensor as it lies in memory."""
    values = np.frombuffer(await request.body(), DTYPES[tensor.datatype]).reshape(1, *tensor.shape)
    with torch.inference_mode():
        outputs = model.forward(module, {tensor.name: torch.from_numpy(values.copy())})
    return {"outputs": outputs["OUTPUT__0"][0].tolist()}


if __name__ == "__main__":
    _, bundle, port, workers = sys.argv
    os.environ |= {"BUNDLE": bundle, "WORKERS": workers}
    sys.path.insert(0, str(Path(__file__).parent))
    uvicorn.run("fastapi_server:app", port=int(port), workers=int(workers), access_log=False, log_level="error")
