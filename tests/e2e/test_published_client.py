"""The published Python client of this API does the main job against us, uploads included."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dlmesh_platform.client import Client
from dlmesh_platform.launch import RunningPlatform
from ibm_cloud_sdk_core.authenticators import BasicAuthenticator
from ibm_wmla.wmla_api_v1 import DeepLearningImpactV1, HyperParameter, ImageDetail
from testkit.platform import held_out

pytestmark = [pytest.mark.platform, pytest.mark.slow]


@pytest.fixture
def published(platform: RunningPlatform) -> Iterator[DeepLearningImpactV1]:
    password = (platform.home / "admin_password").read_text().strip()
    service = DeepLearningImpactV1(authenticator=BasicAuthenticator("Admin", password))
    service.set_service_url(platform.url)
    yield service
    service.http_client.close()


def wait(client: Client, fetch: Callable[[], Any]) -> Any:
    return client.wait(fetch, seconds=600)


def test_main_job(platform: RunningPlatform, admin: Client, published: DeepLearningImpactV1) -> None:
    created = published.add_dataset(
        name="pub",
        dbbackend="LMDB",
        sigid="local",
        datasourcetype="IMAGEFORCLASSIFICATION",
        imagedetail=ImageDetail(
            trainimagepath="digits",
            imagetype="Gray",
            height=16,
            width=16,
            resizetransformation="squash",
            valpercentage=10,
            testpercentage=10,
        ),
    )
    assert created.get_status_code() == 201
    wait(admin, lambda: published.get_dataset_info("pub").get_result())
    assert "pub" in [each["name"] for each in published.get_full_dataset_details().get_result()]

    templates = published.get_model_template_details(framework="PyTorch").get_result()
    assert "pytorch-image-classification" in [each["name"] for each in templates]
    hyperparameter = HyperParameter(
        learningrate=0.002,
        epoch=15,
        solvertype=HyperParameter.SolvertypeEnum.ADAM_CF_TF_AND_PT.value,
        lrpolicy=HyperParameter.LrpolicyEnum.FIXED_CF_TF_AND_PT.value,
    )
    created = published.add_model(
        name="pub",
        templatename="pytorch-image-classification",
        dataset="pub",
        sig="local",
        accelerator="Native",
        type="Training",
        batchsize=64,
        hyperparameter=hyperparameter,
    )
    assert created.get_status_code() == 201
    assert published.get_model_by_name("pub").get_result()["dataset"] == "pub"
    assert "main.py" in str(published.get_model_files("pub").get_result())

    published.start_model_training("pub", train_name="t", dl_framework="PyTorch", cluster_size=2)
    wait(admin, lambda: published.get_model_trainingby_name("pub", "t").get_result()["trainingParameters"])
    assert published.get_model_training_names("pub").get_result() == ["t"]

    published.start_validation("pub", val_name="v", train_name="t", metrics=["Top1"])
    validation = wait(admin, lambda: published.get_validations("pub").get_result()[0])
    assert float(validation["outPairs"][0]["value"]) >= 0.95

    created = published.create_model_train_inference("pub", "t", inference_model_name="pub-online")
    assert created.get_status_code() == 201
    images = [held_out(platform)[digit] for digit in (0, 6)]
    published.start_predict(
        image0=images[0].read_bytes(),
        image1=images[1].read_bytes(),
        modelname="pub-online",
        threshold="0",
        predictname="two",
    )
    wait(admin, lambda: published.get_predict_by_predict_name("two").get_result())
    answered = published.get_predict_results("two").get_result()["classificationResults"]
    labels = [max(sample["results"], key=lambda result: result["prob"])["label"] for sample in answered]
    assert sorted(labels) == sorted(image.name[0] for image in images)


def test_weight_file_upload(published: DeepLearningImpactV1) -> None:
    weights = io.BytesIO(b"\x00\x01not really weights\xff" * 50_000)
    weights.name = "uploaded.pth"
    assert published.upload_wf(file=weights).get_status_code() == 201
