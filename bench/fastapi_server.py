"""`python fastapi_server.py BUNDLE PORT WORKERS`: the server that a user would write for the model of a bundle.

A tensor in, probabilities out, a forward pass a request. It runs in an environment of its own.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import util
from pathlib import Path

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request

app = FastAPI()
bundle = Path(os.environ.get("BUNDLE") or sys.argv[1])
serving = json.loads((bundle / "serving.json").read_text())
shape = {side: serving[side] for side in ("channels", "height", "width")}
specification = util.spec_from_file_location("program", bundle / "model.py")
program = util.module_from_spec(specification)
specification.loader.exec_module(program)
network = program.build_model(len(serving["labels"]), **shape)
network.load_state_dict(torch.load(bundle / "model_epoch_final.pth", weights_only=True))
network.eval()
torch.set_num_threads(1)


@app.post("/predict")
async def predict(request: Request) -> dict[str, list[float]]:
    """The body is one float32 tensor."""
    values = np.frombuffer(await request.body(), np.float32).reshape(1, *shape.values())
    with torch.inference_mode():
        probabilities = torch.softmax(network(torch.from_numpy(values.copy())), 1)[0]
    return {"probabilities": probabilities.tolist()}


if __name__ == "__main__":
    os.environ["BUNDLE"] = sys.argv[1]
    sys.path.insert(0, str(Path(__file__).parent))
    uvicorn.run(
        "fastapi_server:app", port=int(sys.argv[2]), workers=int(sys.argv[3]), access_log=False, log_level="error"
    )
