"""Messages to requests, predictions to details: both ways side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dlmesh.inference.v1 import inference_pb2
from servicekit.errors import invalid
from servicekit.multipart import Part
from servicekit.times import format_time

from inference_service.domain.predictions import Prediction, SampleResult
from inference_service.domain.specs import RESULT_FILE
from inference_service.usecases.create_model import InferenceModelRequest
from inference_service.usecases.ports import Upload
from inference_service.usecases.start_prediction import PredictionRequest

FIELDS = ("modelname", "threshold", "predictname", "masterUrl", "sigid", "signame")
MAX_FIELD_BYTES = 4096
# Parameters of a session that some clients send along as fields.
IGNORED = ("csrftoken",)


def model_request(message: inference_pb2.CreateInferenceModelRequest) -> InferenceModelRequest:
    return InferenceModelRequest(message.model_name, message.training_name, message.inference_model_name)


def prediction_request(parts: Sequence[Part], spool: Path) -> PredictionRequest:
    """Every part that is not a field is an image, whatever it is called; small ones are written to `spool`."""
    fields = {part.name: _field(part) for part in parts if part.name in FIELDS}
    uploads = []
    for index, part in enumerate(parts):
        if part.name in FIELDS or part.name in IGNORED:
            continue
        if part.path is None:
            part.path = spool / f"small-{index}"
            part.path.write_bytes(part.value or b"")
        uploads.append(Upload(_shown_name(part, index), part.path))
    return PredictionRequest(
        name=fields.get("predictname", ""),
        model_name=fields.get("modelname", ""),
        threshold=fields.get("threshold", ""),
        uploads=uploads,
        group_id=fields.get("sigid", ""),
        group_name=fields.get("signame", ""),
        master_url=fields.get("masterUrl", ""),
    )


def prediction_detail(prediction: Prediction, folder: Path) -> inference_pb2.PredictionDetail:
    """`folder` is the prediction's."""
    detail = inference_pb2.PredictionDetail(
        model_name=prediction.model_name,
        prediction_name=prediction.name,
        input_path=str(folder / "input"),
        input_files=",".join(sample.id for sample in prediction.samples),
        output=str(folder / "output"),
        threshold=prediction.threshold,
        result_file=RESULT_FILE,
        status=str(prediction.status),
        instance_group_id=prediction.group.id,
        instance_group_name=prediction.group.name,
        master_url=prediction.group.master_url,
        driver_id=prediction.driver_id,
        application_id=prediction.job_id,
        application_url="",
        created_at=format_time(prediction.created_at),
        owner=prediction.owner,
        history_server_url=prediction.group.history_server_url,
        status_message=prediction.status_message,
    )
    if prediction.best:
        best = prediction.best
        score = inference_pb2.PredictionScore(
            index=str(best["index"]), name=best["label"], probability=best["probability"]
        )
        detail.result.CopyFrom(inference_pb2.PredictionSummary(item=best["sample"], result=score))
    return detail


def prediction_result(results: Sequence[SampleResult]) -> inference_pb2.PredictionResult:
    """A sample that could not be read has `isImage` false and no results."""
    return inference_pb2.PredictionResult(
        type="classification",
        classification_results=[
            inference_pb2.SampleResult(
                sample_id=result.sample_id,
                input_path=result.input_path,
                is_image=not result.error,
                results=[
                    inference_pb2.SampleScore(label=score.label, probability=score.probability)
                    for score in result.scores
                ],
            )
            for result in results
        ],
    )


def _field(part: Part) -> str:
    if part.size > MAX_FIELD_BYTES:
        raise invalid(part.name, f"({part.size} bytes)", f"a text of at most {MAX_FIELD_BYTES} bytes")
    return part.text().strip()


def _shown_name(part: Part, index: int) -> str:
    """The file's name without folders, else the part's name."""
    base = (part.filename or "").replace("\\", "/").rsplit("/", 1)[-1].replace("\0", "")
    return (base or part.name.replace("\0", "") or f"image{index}")[:255]
