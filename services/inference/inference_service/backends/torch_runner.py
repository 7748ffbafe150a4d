"""Serves a PyTorch bundle in Triton's Python backend. Copied into the model repository.

What Triton batched is answered with one forward pass. Tensors pass as DLPack only: the server's Python stub predates
numpy 2 and would, silently, answer zeros through numpy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import bytes_tensors  # type: ignore[import-not-found]
import torch
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from dlmesh_sdk import served
from model_room import ModelRoom  # type: ignore[import-not-found]
from torch.nn.utils.rnn import pad_sequence
from torch.utils import dlpack

bytes_tensors.mend()

MANY_NUMBERS = 1_000_000
Batch = dict[str, torch.Tensor]


class Call(NamedTuple):
    """A request and its inputs by name."""

    request: Any
    inputs: dict[str, Any]


class TritonPythonModel:
    """One instance of the model, on the device that Triton gives it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the model and load its weights; what is raised here is what the load is refused with."""
        torch.set_num_threads(1)
        bundle = Path(args["model_repository"], args["model_version"], "bundle")
        self.room = ModelRoom(bundle, f"{args['model_name']}-{args['model_version']}")
        self.room.enter()
        use_gpu = args["model_instance_kind"] == "GPU" and torch.cuda.is_available()
        self.device = torch.device(f"cuda:{args['model_instance_device_id']}" if use_gpu else "cpu")
        self.served = served.load(bundle)
        self.tensors = served.describe(self.served.serving).inputs
        module = self.served.build_model()
        weights = torch.load(bundle / "model_epoch_final.pth", map_location="cpu", weights_only=True)
        module.load_state_dict(weights)
        self.module = module.to(self.device).eval()

    def execute(self, requests: list[Any]) -> list[Any]:
        """An answer to each request, or the words of its own failure: others of its batch are answered."""
        calls = [Call(request, {tensor.name(): tensor for tensor in request.inputs()}) for request in requests]
        answers: dict[int, Any] = {}
        for answer, is_items in ((self._answer_tensors, False), (self._answer_items, True)):
            chosen = [number for number, call in enumerate(calls) if ("ITEM" in call.inputs) is is_items]
            answers |= zip(chosen, _each_answered(answer, [calls[number] for number in chosen]), strict=True)
        return [answers[number] for number in range(len(requests))]

    def finalize(self) -> None:
        """It is unloaded."""
        self.room.leave()

    def _answer_tensors(self, calls: Sequence[Call]) -> list[Any]:
        parts = [self._tensors_of(call.inputs) for call in calls]
        outputs = self._forward({name: _joined([part[name] for part in parts]) for name in parts[0]})
        counts = [len(next(iter(part.values()))) for part in parts]
        pieces = {name: output.split(counts) for name, output in outputs.items()}
        return [
            # Each answer owns its memory: Triton may still read it when the others are gone.
            pb_utils.InferenceResponse(
                [pb_utils.Tensor.from_dlpack(name, each[number].clone()) for name, each in pieces.items()]
            )
            for number in range(len(calls))
        ]

    def _tensors_of(self, given: Mapping[str, Any]) -> Batch:
        if missing := [tensor.name for tensor in self.tensors if tensor.name not in given]:
            raise ValueError(f"input {missing[0]} is missing: needed are ITEM alone, or {_names(self.tensors)}")
        inputs = {tensor.name: dlpack.from_dlpack(given[tensor.name].to_dlpack()) for tensor in self.tensors}
        self.served.check(inputs)
        return inputs

    def _answer_items(self, calls: Sequence[Call]) -> list[Any]:
        if any(len(call.inputs) > 1 for call in calls):
            raise ValueError(f"needed are ITEM alone, or {_names(self.tensors)}")
        contents = [bytes_tensors.read(call.request, "ITEM") for call in calls]
        flat = [content for each in contents for content in each]
        encoded = self.served.encode([self.served.item(content, str(place)) for place, content in enumerate(flat)])
        inputs = {name: torch.from_numpy(array) for name, array in encoded.inputs.items()}
        outputs = {name: tensor.numpy() for name, tensor in self._forward(inputs).items()} if inputs else {}
        results = iter(self.served.results(encoded, outputs))
        return [
            pb_utils.InferenceResponse([bytes_tensors.make("RESULT", [_text(next(results)) for _ in each])])
            for each in contents
        ]

    def _forward(self, inputs: Batch) -> Batch:
        # Threads cost small requests more than they bring; a batch of large pictures is worth all cores.
        is_large = sum(tensor.numel() for tensor in inputs.values()) >= MANY_NUMBERS
        torch.set_num_threads(len(os.sched_getaffinity(0)) if is_large else 1)
        with torch.inference_mode():
            on_device = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            return self.served.forward(self.module, on_device)


def _each_answered(answer: Callable[[list[Call]], list[Any]], calls: list[Call]) -> list[Any]:
    """Together, or, when that fails, one by one: the failure is of one of them."""
    try:
        return answer(calls) if calls else []
    except Exception as error:
        if len(calls) > 1:
            return [_each_answered(answer, [call])[0] for call in calls]
        refusal = pb_utils.TritonError(f"{type(error).__name__}: {error}")
        return [pb_utils.InferenceResponse(error=refusal)]


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of several requests; rows of tokens are filled up to the longest."""
    if len({tensor.shape[1:] for tensor in tensors}) == 1:
        return torch.cat(list(tensors))
    return pad_sequence([row for tensor in tensors for row in tensor], batch_first=True)


def _names(tensors: Sequence[served.Tensor]) -> str:
    return ", ".join(tensor.name for tensor in tensors)


def _text(result: Mapping[str, Any]) -> bytes:
    return json.dumps({name: value for name, value in result.items() if name != "sampleId"}, allow_nan=False).encode()
