"""What a user writes for DeepSpeed without the platform: the template's network and data, and a plain loop.

Nothing is reported, tested, checked for a stop or kept but the last weights.
"""

import functools
import json
import os
import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from dlmesh_sdk.deepspeed_on_cpu import install
from dlmesh_sdk.record_datasets import open_records, read_labels
from model import build_model, preprocess
from torch.utils.data import DataLoader, DistributedSampler

install()
dist.init_process_group("gloo")
torch.set_num_threads(1)
settings = json.loads(Path(os.environ["DLMESH_PARAMETERS"]).read_text())
folder = settings["data"]["train"]
channels, height, width = open_records(folder, preprocess).shape
shape = {"channels": channels, "height": height, "width": width}
data = open_records(folder, functools.partial(preprocess, **shape))
model = build_model(len(read_labels(folder)), channels, height, width)
engine, *_ = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.Adam(model.parameters(), lr=settings["hyperparameter"]["learningrate"]),
    config={
        "train_batch_size": settings["batch_size"],
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    },
)
sampler = DistributedSampler(data)
loader = DataLoader(data, batch_size=settings["batch_size"] // dist.get_world_size(), sampler=sampler)
for epoch in range(settings["hyperparameter"]["epoch"]):
    sampler.set_epoch(epoch)
    for inputs, targets in loader:
        engine.backward(torch.nn.functional.cross_entropy(engine(inputs), targets))
        engine.step()
if dist.get_rank() == 0:
    torch.save(model.state_dict(), Path(sys.argv[sys.argv.index("--train_dir") + 1]) / "model.pth")
