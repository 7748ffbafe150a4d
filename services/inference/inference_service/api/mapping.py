"""Messages to requests, predictions to details: both ways side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dlmesh.inference.v1 import inference_pb2
from servicekit.errors import invalid, sendable
from servicekit.multipart import Part
from servicekit.times import format_time

from inference_service.domain.predictions import (
    SHOWN_SAMPLES,
    PairResult,
    Prediction,
    ResultPage,
    ResultType,
    SampleResult,
)
from inference_service.usecases.create_model import InferenceModelRequest
from inference_service.usecases.ports import Upload
from inference_service.usecases.start_prediction import PredictionRequest

FIELDS = ("modelname", "threshold", "predictname", "inputpath", "masterUrl", "sigid", "signame")
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
        input_path=fields.get("inputpath", ""),
        group_id=fields.get("sigid", ""),
        group_name=fields.get("signame", ""),
        master_url=fields.get("masterUrl", ""),
    )


def prediction_detail(prediction: Prediction, folder: Path) -> inference_pb2.PredictionDetail:
    """`folder` is the prediction's."""
    detail = inference_pb2.PredictionDetail(
        model_name=prediction.model_name,
        prediction_name=prediction.name,
        input_path=prediction.input_path or str(folder / "input"),
        input_files=_shown_files(prediction),
        output=str(folder / "output"),
        threshold=prediction.threshold,
        result_file=prediction.result_file,
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
        progress=f"{prediction.done}/{prediction.sample_count}" if prediction.sample_count else "",
    )
    if prediction.best:
        best = prediction.best
        score = inference_pb2.PredictionScore(
            index=str(best["index"]), name=best["label"], probability=best["probability"]
        )
        detail.result.CopyFrom(inference_pb2.PredictionSummary(item=best["sample"], result=score))
    return detail


def prediction_result(page: ResultPage) -> inference_pb2.PredictionResult:
    """What could not be read has `isImage` false and no results."""
    message = inference_pb2.PredictionResult(type=str(page.type), total=page.total)
    for result in page.results:
        path = sendable(f"{page.folder}/{result.file}")
        is_image = page.are_images and not result.error
        if isinstance(result, PairResult):
            message.comparison_results.append(_comparison(result, path, is_image=is_image))
        elif page.type is ResultType.VECTOR:
            message.vector_results.add(
                sample_id=sendable(result.sample_id), input_path=path, is_image=is_image, vector=result.vector
            )
        elif page.type is ResultType.DETECTION:
            message.detection_results.append(_sample(result, path, is_image=is_image))
        else:
            message.classification_results.append(_sample(result, path, is_image=is_image))
    return message


def _sample(result: SampleResult, path: str, *, is_image: bool) -> inference_pb2.SampleResult:
    return inference_pb2.SampleResult(
        sample_id=sendable(result.sample_id),
        input_path=path,
        is_image=is_image,
        results=[
            inference_pb2.SampleScore(
                label=score.label, probability=score.probability, bounding_box=score.box if score.box else None
            )
            for score in result.scores
        ],
    )


def _comparison(result: PairResult, path: str, *, is_image: bool) -> inference_pb2.ComparisonResult:
    answer = inference_pb2.ComparisonResult(
        first_sample_id=sendable(result.first_id),
        second_sample_id=sendable(result.second_id),
        input_path=path,
        is_image=is_image,
    )
    if not result.error:
        answer.distance, answer.is_similar = result.distance, result.is_similar
    return answer


def _shown_files(prediction: Prediction) -> str:
    """The first names, and how many there are besides; a folder's are in its results."""
    names = [sample.id for sample in prediction.samples[:SHOWN_SAMPLES]]
    more = prediction.sample_count - len(names)
    return ",".join(names + ([f"({more} more)"] if names and more > 0 else []))


def _field(part: Part) -> str:
    if part.size > MAX_FIELD_BYTES:
        raise invalid(part.name, f"({part.size} bytes)", f"a text of at most {MAX_FIELD_BYTES} bytes")
    return part.text().strip()


def _shown_name(part: Part, index: int) -> str:
    """The file's name without folders, else the part's name."""
    base = (part.filename or "").replace("\\", "/").rsplit("/", 1)[-1].replace("\0", "")
    return (base or part.name.replace("\0", "") or f"image{index}")[:255]
