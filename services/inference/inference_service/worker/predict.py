"""`python -m inference_service.worker.predict SPEC.json`: images in, labels with probabilities out, by Triton."""

from __future__ import annotations

import importlib.util
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from PIL import Image
from tritonclient.utils import InferenceServerException
from workerkit import Reporter

from inference_service.backends.base import Serving
from inference_service.domain.predictions import Sample, SampleResult, Score
from inference_service.domain.specs import PredictionSpec, write_results
from inference_service.triton.server import read_grpc_address

BATCH_SIZE = 32
CALL_SECONDS = 120.0
# For a Triton that restarts: the supervisor is back within seconds, importing torch takes some more.
PATIENCE_SECONDS = 120.0
# While the server starts it does not listen, then it does not know the model, then the model is not ready.
PASSING = {"StatusCode.UNAVAILABLE", "StatusCode.NOT_FOUND", "StatusCode.CANCELLED", "StatusCode.DEADLINE_EXCEEDED"}

Preprocess = Callable[[Image.Image], np.ndarray[Any, Any]]


class PredictionError(Exception):
    """The prediction cannot be made; the text says why."""


def main(spec_file: str) -> None:
    """Predict, write the results whole, report. SystemExit with a message when it cannot be done."""
    spec = PredictionSpec.read(spec_file)
    with Reporter.from_environment() as reporter:
        try:
            results = predict(spec, lambda done: reporter.progress(done, len(spec.samples), "predicting"))
        except PredictionError as error:
            sys.exit(str(error))
        write_results(Path(spec.output_file), results)
        reporter.result(summary(results))


def predict(spec: PredictionSpec, on_progress: Callable[[int], None]) -> list[SampleResult]:
    """Results in the order of the samples; PredictionError when Triton stays away or refuses."""
    bundle = Path(spec.bundle)
    serving = Serving.read(bundle / "serving.json")
    program = load_program(bundle)

    def preprocess(image: Image.Image) -> np.ndarray[Any, Any]:
        pixels = program.preprocess(image, serving.channels, serving.height, serving.width)
        return np.ascontiguousarray(pixels, np.float32)

    results: list[SampleResult] = []
    client = Client(Path(spec.address_file), spec.model_name)
    try:
        for batch in _batches(spec.samples):
            results += _predict_batch(batch, spec, serving.labels, preprocess, client)
            on_progress(len(results))
    finally:
        client.close()
    return results


def summary(results: Sequence[SampleResult]) -> dict[str, Any]:
    """What the job reports: the best score of the first sample that has one, and what could not be read."""
    best = next(
        (
            {
                "sample": result.sample_id,
                "index": result.scores[0].index,
                "label": result.scores[0].label,
                "probability": result.scores[0].probability,
            }
            for result in results
            if result.scores
        ),
        None,
    )
    unreadable = [result.sample_id for result in results if result.error]
    return {"samples": len(results), "best": best, "unreadable": unreadable[:100]}


def scores_of(probabilities: Sequence[float], labels: Sequence[str], threshold: float) -> tuple[Score, ...]:
    """Labels whose probability reaches the threshold, best first."""
    scores = [Score(index, labels[index], float(value)) for index, value in enumerate(probabilities)]
    kept = [score for score in scores if score.probability >= threshold]
    return tuple(sorted(kept, key=lambda score: (-score.probability, score.index)))


def load_program(bundle: Path) -> ModuleType:
    """The bundle's model.py under a name of its own; PredictionError when it does not load."""
    sys.path.insert(0, str(bundle))
    specification = importlib.util.spec_from_file_location(
        f"dlmesh_bundle_{bundle.parents[1].name}", bundle / "model.py"
    )
    if specification is None or specification.loader is None:
        raise PredictionError(f"{bundle / 'model.py'} is not a Python file")
    program = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = program
    specification.loader.exec_module(program)
    return program


class Client:
    """Infers with one model, patient while Triton restarts."""

    def __init__(self, address_file: Path, model_name: str) -> None:
        self._address_file, self._model_name = address_file, model_name
        self._client: Any = None
        self._address = ""

    def infer(self, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Probabilities [n, labels] of inputs [n, channels, height, width]."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self._infer(inputs)
            except InferenceServerException as error:
                if not _is_passing(error):
                    raise PredictionError(f"Triton refuses: {error.message()}") from error
                if time.monotonic() > deadline:
                    message = f"Triton did not answer for {PATIENCE_SECONDS:.0f} s: {error.message()}"
                    raise PredictionError(message) from error
            time.sleep(0.25)

    def close(self) -> None:
        """Close the channel."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _infer(self, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        address = read_grpc_address(self._address_file)
        if address is None:
            raise InferenceServerException("no address was published", "StatusCode.UNAVAILABLE")
        if self._client is None or address != self._address:
            self.close()
            options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
            options += [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            self._client = triton.InferenceServerClient(address, channel_args=options)
            self._address = address
        tensor = triton.InferInput("INPUT__0", list(inputs.shape), "FP32")
        tensor.set_data_from_numpy(inputs)
        answer = self._client.infer(self._model_name, [tensor], client_timeout=CALL_SECONDS)
        probabilities: np.ndarray[Any, Any] = answer.as_numpy("OUTPUT__0")
        return probabilities


def _is_passing(error: InferenceServerException) -> bool:
    # "not healthy": the process of the model was killed under a living server; the service loads it again.
    message = str(error.message())
    return error.status() in PASSING or "not ready" in message or "not healthy" in message


def _batches(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    for start in range(0, len(samples), BATCH_SIZE):
        yield samples[start : start + BATCH_SIZE]


def _predict_batch(
    batch: Sequence[Sample], spec: PredictionSpec, labels: Sequence[str], preprocess: Preprocess, client: Client
) -> list[SampleResult]:
    inputs: dict[str, np.ndarray[Any, Any]] = {}
    errors: dict[str, str] = {}
    for sample in batch:
        try:
            inputs[sample.id] = preprocess(_open(Path(spec.input_dir) / sample.file))
        except Exception as error:
            # Whatever a picture from anywhere makes the decoder say: it is that picture's result.
            errors[sample.id] = f"{type(error).__name__}: {error}"
    probabilities = client.infer(np.stack(list(inputs.values()))) if inputs else ()
    scores = dict(zip(inputs, probabilities, strict=True))
    return [
        SampleResult(
            sample_id=sample.id,
            input_path=str(Path(spec.input_dir) / sample.file),
            scores=scores_of(scores[sample.id], labels, spec.threshold) if sample.id in scores else (),
            error=errors.get(sample.id, ""),
        )
        for sample in batch
    ]


def _open(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        # A small file may claim to be a picture of gigabytes.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            image.load()
            return image


if __name__ == "__main__":
    main(sys.argv[1])
