"""A trained model between its input and its results: one code for training, validation, batch and online inference.

`load(bundle)` gives the `Served` of a folder with the model's program, `model.py`, and `serving.json`. It opens samples
(`items`, `item`), makes arrays of them (`encode`), and results of what the forward pass answered (`results`). The
weights and the forward pass are used where there is torch: `build_model` and `forward`. `describe` knows the tensors
from serving.json alone and runs nothing of the model's.
"""

from dlmesh_sdk.served.base import Encoded, Facts, Item, Served, Tensor, Unreadable
from dlmesh_sdk.served.registry import TASKS, describe, lacks, load, make

__all__ = [
    "TASKS",
    "Encoded",
    "Facts",
    "Item",
    "Served",
    "Tensor",
    "Unreadable",
    "describe",
    "lacks",
    "load",
    "make",
]
