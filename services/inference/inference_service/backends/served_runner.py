"""What the runners of models with tensors share. Copied into the model repository.

A request has the model's tensors, or ITEM alone. What Triton batched is answered with one forward pass of all tensors
and one of all items (one for each shape of these); what is wrong with a request is its own error.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import bytes_tensors  # type: ignore[import-not-found]
import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from dlmesh_sdk import served

Arrays = Mapping[str, Any]


class RequestError(ValueError):
    """The request is not what the model takes; the text says what it takes."""


class ServedRunner(ABC):
    """`execute` for a TritonPythonModel, which sets `served`. The methods below are in arrays of its framework."""

    served: served.Served

    @abstractmethod
    def take(self, tensor: Any) -> Any:
        """The array of a tensor of Triton."""

    @abstractmethod
    def join(self, arrays: Sequence[Any]) -> Any:
        """The rows of several requests, one behind the other."""

    @abstractmethod
    def forward(self, inputs: Arrays) -> Arrays:
        """Outputs by name."""

    @abstractmethod
    def copy(self, array: Any) -> Any:
        """With memory of its own: Triton may still read an answer when the others are gone."""

    @abstractmethod
    def forward_arrays(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """The same as `forward` in numpy."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """An answer to each request, or the words of its own failure: others of its batch are answered."""
        answers: dict[int, Any] = {}
        tensors: dict[int, Arrays] = {}
        items: dict[int, list[bytes]] = {}
        for place, request in enumerate(requests):
            given = {tensor.name(): tensor for tensor in request.inputs()}
            try:
                # All that there are where the client names none.
                asked = set(request.requested_output_names())
                if "ITEM" in given and len(given) == 1:
                    if "RESULT" not in asked:
                        raise RequestError("outputs: ITEM is answered with RESULT")
                    items[place] = bytes_tensors.read(request, "ITEM")
                else:
                    if asked == {"RESULT"}:
                        raise RequestError("outputs: RESULT is the answer to ITEM")
                    tensors[place] = self._tensors_of(given)
            except Exception as error:
                answers[place] = _refusal(error)
        for answer, calls in ((self._answer_tensors, tensors), (self._answer_items, items)):
            answers |= zip(calls, _each_answered(answer, list(calls.values())), strict=True)
        return [answers[place] for place in range(len(requests))]

    @cached_property
    def _names(self) -> list[str]:
        """Of the model's tensors."""
        return [tensor.name for tensor in served.describe(self.served.serving).inputs]

    def _tensors_of(self, given: Arrays) -> Arrays:
        if sorted(given) != sorted(self._names):
            needed = ", ".join(self._names)
            raise RequestError(f"needed are ITEM alone, or {needed}; given: {', '.join(given) or 'nothing'}")
        inputs = {name: self.take(given[name]) for name in self._names}
        try:
            self.served.check(inputs)
        except ValueError as error:
            raise RequestError(str(error)) from error
        return inputs

    def _answer_tensors(self, calls: Sequence[Arrays]) -> list[Any]:
        outputs = self.forward({name: self.join([call[name] for call in calls]) for name in calls[0]})
        ends = accumulate((len(next(iter(call.values()))) for call in calls), initial=0)
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor.from_dlpack(name, self.copy(rows[start:end])) for name, rows in outputs.items()]
            )
            for start, end in pairwise(ends)
        ]

    def _answer_items(self, calls: Sequence[list[bytes]]) -> list[Any]:
        contents = [content for call in calls for content in call]
        found: dict[str, dict[str, Any]] = {}
        items = [self.served.item(content, str(place)) for place, content in enumerate(contents)]
        for encoded in self.served.encode_alike(items):
            outputs = self.forward_arrays(encoded.inputs) if encoded.inputs else {}
            found |= {result.pop("sampleId"): result for result in self.served.results(encoded, outputs)}
        texts = iter([json.dumps(found[item.sample_id], allow_nan=False).encode() for item in items])
        return [
            pb_utils.InferenceResponse([bytes_tensors.make("RESULT", [next(texts) for _ in call])]) for call in calls
        ]


def _each_answered(answer: Callable[[Any], list[Any]], calls: list[Any]) -> list[Any]:
    """Together, or, when that fails, one by one: the failure is of one of them."""
    try:
        return answer(calls) if calls else []
    except Exception as error:
        if len(calls) > 1:
            return [_each_answered(answer, [call])[0] for call in calls]
        return [_refusal(error)]


def _refusal(error: Exception) -> Any:
    if isinstance(error, RequestError):
        refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
    else:
        refusal = pb_utils.TritonError(f"{type(error).__name__}: {error}")
    return pb_utils.InferenceResponse(error=refusal)
