"""The main job through the public REST API on real components: Envoy, all services, DeepSpeed ranks, Triton."""

from __future__ import annotations

import pytest
from dlmesh_platform.client import ApiError, Client
from dlmesh_platform.launch import RunningPlatform
from dlmesh_platform.main_job import MainJob
from testkit.platform import held_out

pytestmark = [pytest.mark.platform, pytest.mark.slow]


def test_dataset_is_split_and_described(admin: Client, trained: MainJob) -> None:
    detail = admin.get("/datasets/shared")
    assert detail["status"] == "FINISHED"
    counts = {part: sum(int(count) for _, count in detail[f"{part}labels"]) for part in ("train", "val", "test")}
    assert sum(counts.values()) == 1787
    assert counts["val"] == pytest.approx(179, abs=6)
    assert counts["test"] == pytest.approx(179, abs=6)
    assert [label for label, _ in detail["trainlabels"]] == [str(digit) for digit in range(10)]


def test_training_reports_what_it_did(admin: Client, trained: MainJob) -> None:
    detail = trained.training()
    assert detail["status"] == "FINISHED"
    assert detail["progress"] == 100
    assert detail["clusterSize"] == 2
    assert detail["sigName"] == "local"
    assert admin.get("/models/shared/trainingnames") == ["first"]


def test_validation_then_predictions_by_triton(platform: RunningPlatform, admin: Client, trained: MainJob) -> None:
    trained.start_validation()
    validation = trained.await_validation()
    assert validation.top1 >= 0.95
    assert sum(map(sum, validation.confusion)) == pytest.approx(179, abs=6)
    right = sum(validation.confusion[digit][digit] for digit in range(10))
    assert right / sum(map(sum, validation.confusion)) == pytest.approx(validation.top1, abs=1e-6)

    trained.create_inference()
    images = held_out(platform)
    trained.start_prediction(images, "ten")
    predictions = trained.await_prediction("ten")
    assert len(predictions) == 10
    assert sum(prediction.label == prediction.image[0] for prediction in predictions) >= 9
    assert all(0 <= prediction.probability <= 1 for prediction in predictions)
    assert "ten" in [each["predictname"] for each in admin.get("/inferences", modelname=trained.inference_model)]

    # What lies below a data root is predicted where it lies, and read by pages.
    fields = {"modelname": trained.inference_model, "threshold": "0", "predictname": "folder"}
    admin.upload("/inferences/startpredict", {**fields, "inputpath": trained.image_folder}, {})
    detail = admin.wait(lambda: admin.get("/inferences/folder"), seconds=300)
    assert (detail["progress"], detail["statusMessage"]) == ("1787/1787", "")
    page = admin.get("/inferences/folder/predicts", start=1000, length=100)
    assert (page["type"], page["total"], len(page["classificationResults"])) == ("classification", 1787, 100)
    # The folders are called as the digits are.
    samples = [(each["sampleId"], each["results"][0]["label"]) for each in page["classificationResults"]]
    assert sum(label == name.partition("/")[0] for name, label in samples) >= 90


def test_a_model_trains_on_tfrecords_as_well(admin: Client, platform: RunningPlatform) -> None:
    job = MainJob(admin, "digits", prefix="records", backend="TFRecords")
    job.create_dataset()
    dataset = job.await_dataset()
    assert dataset["shards"] == 4
    job.create_model()
    job.start_training()
    detail = job.await_training()
    assert detail["status"] == "FINISHED"
    assert detail["datasetHash"] == dataset["contentHash"]
    job.start_validation()
    assert job.await_validation().top1 >= 0.95


def test_what_is_in_use_stays(admin: Client, trained: MainJob) -> None:
    with pytest.raises(ApiError, match="shared") as refusal:
        admin.delete("/datasets/shared")
    assert refusal.value.status == 409


def test_applications_and_instances_are_listed(admin: Client, trained: MainJob) -> None:
    assert admin.get("/scheduler/instances")
    applications = admin.get("/scheduler/applications")
    assert any("FINISHED" in str(application) for application in applications)
    assert "triton.http.url" in admin.get("/conf")


def test_a_program_that_crashes_leaves_its_last_words(admin: Client, trained: MainJob) -> None:
    crash = 'raise RuntimeError("this program is broken on purpose")\n'
    admin.post(
        "/models",
        {
            "name": "broken",
            "templatename": "pytorch-image-classification",
            "dataset": "shared",
            "sig": "local",
            "accelerator": "Native",
            "type": "Training",
            "tfmainContent": crash,
        },
    )
    broken = MainJob(admin, "digits", prefix="broken")
    broken.start_training()
    with pytest.raises(RuntimeError, match="broken on purpose"):
        broken.await_training()
    assert broken.training()["status"] == "FAILED"


def test_stop_ends_a_training_as_stopped(admin: Client, trained: MainJob) -> None:
    admin.post(
        "/models",
        {
            "name": "endless",
            "templatename": "pytorch-image-classification",
            "dataset": "shared",
            "sig": "local",
            "accelerator": "Native",
            "type": "Training",
            "hyperparameter": {"solvertype": "Adam", "learningrate": 0.001, "lrpolicy": "fixed", "epoch": 100000},
        },
    )
    endless = MainJob(admin, "digits", prefix="endless")
    endless.start_training()
    admin.until(lambda: endless.training()["status"] == "RUNNING", seconds=60)
    admin.put("/models/endless/trainings/first/stop")
    with pytest.raises(RuntimeError, match="STOPPED"):
        endless.await_training()
    admin.delete("/models/endless/trainings/first")
    assert admin.get("/models/endless/trainings") == []
