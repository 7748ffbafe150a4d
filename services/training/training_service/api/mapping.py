"""Messages to requests, runs to details: both ways side by side."""

from __future__ import annotations

from dlmesh.training.v1 import metrics_pb2, training_pb2
from servicekit.times import format_time

from training_service.domain.addresses import without_passwords
from training_service.domain.metrics import MetricPoint
from training_service.domain.runs import Training, Validation
from training_service.usecases.metrics import Curves
from training_service.usecases.start_validation import ValidationRequest
from training_service.usecases.training_request import TrainingRequest


def training_request(message: training_pb2.StartTrainingRequest) -> TrainingRequest:
    return TrainingRequest(
        name=message.training_name,
        framework=message.framework,
        cluster_size=message.cluster_size,
        command=message.command,
        weights_url=message.weights_url,
        initial_weights=message.initial_weights,
        weights_folder=message.weights_folder,
        gpu_percentage=message.gpu_percentage,
        test_interval=message.test_interval,
        test_iterations=message.test_iterations,
        sync_mode=message.sync_mode,
        min_workers=message.min_workers,
        checkpoint_interval=message.checkpoint_interval,
        checkpoints_kept=message.checkpoints_kept,
        max_restarts=message.max_restarts if message.HasField("max_restarts") else None,
        max_silent_seconds=message.max_silent_seconds,
        priority=message.priority,
        max_seconds=message.max_seconds,
    )


def training_detail(training: Training, path: str) -> training_pb2.TrainingDetail:
    """`path` is the folder of its weights."""
    return training_pb2.TrainingDetail(
        model=training.model_name,
        dataset=training.dataset_name,
        parameters=training_pb2.TrainingParameters(
            instance_group_id=training.group.id,
            instance_group_name=training.group.name,
            master_url=training.group.master_url,
            driver_id=training.driver_id,
            command=training.command,
            training_name=training.name,
            framework=training.framework,
            status=str(training.status),
            application_id=training.job_id,
            application_url="",
            weights_url=without_passwords(training.weights_url),
            initial_weights=training.initial_weights,
            weights_folder=training.weights_folder,
            gpu_percentage=training.gpu_percentage,
            created_at=format_time(training.created_at),
            owner=training.owner,
            cluster_size=training.cluster_size,
            test_interval=training.test_interval,
            test_iterations=training.test_iterations,
            sync_mode=training.sync_mode,
            accelerator=training.accelerator,
            min_workers=training.min_workers,
            workers=training.workers,
            checkpoint_interval=training.checkpoint_interval,
            checkpoints_kept=training.checkpoints_kept,
            max_restarts=training.max_restarts,
            max_silent_seconds=training.max_silent_seconds,
            priority=training.priority,
            max_seconds=training.max_seconds,
            progress=training.progress,
            history_server_url=training.group.history_server_url,
            status_message=training.status_message,
            uid=training.uid,
            dataset_hash=training.dataset_hash,
            path=path,
        ),
    )


def validation_request(message: training_pb2.StartValidationRequest) -> ValidationRequest:
    return ValidationRequest(
        name=message.name,
        training=message.training_name,
        metrics=tuple(message.metrics),
        threshold=message.threshold,
        max_silent_seconds=message.max_silent_seconds,
    )


def validation_detail(validation: Validation) -> training_pb2.ValidationDetail:
    return training_pb2.ValidationDetail(
        model_name=validation.model_name,
        dataset=validation.dataset_name,
        status=str(validation.status),
        driver_id=validation.driver_id,
        application_id=validation.job_id,
        application_url="",
        history_server_url=validation.group.history_server_url,
        parameters=training_pb2.ValidationParameters(
            name=validation.name,
            instance_group_id=validation.group.id,
            instance_group_name=validation.group.name,
            master_url=validation.group.master_url,
            created_at=format_time(validation.created_at),
            owner=validation.owner,
            training_name=validation.training_name,
            metrics=validation.metrics,
            threshold=validation.threshold,
            max_silent_seconds=validation.max_silent_seconds,
        ),
        results=[training_pb2.ValidationResult(name=name, value=value) for name, value in validation.pairs],
        status_message=validation.status_message,
        progress=validation.progress,
    )


def metric_points(message: metrics_pb2.RecordMetricsRequest) -> list[MetricPoint]:
    return [
        MetricPoint(message.job_id, message.attempt, point.series, point.step, point.value, point.time)
        for point in message.points
    ]


def curves(message: training_pb2.ReadTrainingMetricsRequest) -> Curves:
    return Curves(tuple(message.series), message.since_step, message.max_points, message.follow)


def training_metric(point: MetricPoint) -> training_pb2.TrainingMetric:
    return training_pb2.TrainingMetric(
        series=point.series, step=point.step, value=point.value, time=point.time, attempt=point.attempt
    )
