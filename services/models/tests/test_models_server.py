"""The service over a real gRPC server: contract headers, details, uploads in bounded memory."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from dlmesh.models.v1 import models_pb2, models_pb2_grpc
from google.protobuf.empty_pb2 import Empty
from models_service.wiring import build
from servicekit.channels import as_service_error
from servicekit.errors import Code, ServiceError
from testkit.services import ADMIN, ALICE, BOB, Client, acting_as, collect, running, settings_for

from .conftest import PlayedPeers

BOUNDARY = "frontier"
TEMPLATE = "pytorch-image-classification"


@pytest.fixture
def peers() -> PlayedPeers:
    return PlayedPeers()


@pytest.fixture
async def client(tmp_path: Path, peers: PlayedPeers) -> AsyncIterator[Client]:
    settings = settings_for("models", tmp_path)
    application = build(settings, datasets=peers, groups=peers, activity=peers)
    async with running(application, settings) as client:
        yield client


@pytest.fixture
def models(client: Client) -> models_pb2_grpc.ModelServiceStub:
    return client.stub(models_pb2_grpc.ModelServiceStub)


@pytest.fixture
def templates(client: Client) -> models_pb2_grpc.ModelTemplateServiceStub:
    return client.stub(models_pb2_grpc.ModelTemplateServiceStub)


async def refusal(call: grpc.aio.UnaryUnaryCall) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return as_service_error(caught.value)


def new_model(name: str = "digits") -> models_pb2.CreateModelRequest:
    return models_pb2.CreateModelRequest(
        name=name,
        template_name=TEMPLATE,
        dataset="digits",
        batch_size=32,
        accelerator="native",
        type="training",
        hyperparameters=models_pb2.Hyperparameters(learning_rate=0.1, solver="adam (Cf, TF and PT)", epochs=3),
    )


async def test_a_model_from_the_shipped_template(
    models: models_pb2_grpc.ModelServiceStub, templates: models_pb2_grpc.ModelTemplateServiceStub
) -> None:
    with acting_as(ALICE):
        shown = await collect(templates.ListModelTemplates(models_pb2.ListModelTemplatesRequest()))
        assert TEMPLATE in [template.name for template in shown]
        call = models.CreateModel(new_model())
        assert await call == Empty()
        headers = dict(await call.initial_metadata() or ())
        assert (headers["x-http-code"], headers["x-http-empty"]) == ("201", "1")
        detail = await models.GetModel(models_pb2.GetModelRequest(model_name="digits"))
        assert (detail.name, detail.owner, detail.accelerator, detail.type) == ("digits", "alice", "Native", "Training")
        assert detail.hyperparameters.solver == "Adam"
        assert detail.hyperparameters.learning_rate == pytest.approx(0.1)
        assert detail.hyperparameters.epochs == 3
        assert detail.hyperparameters.learning_rate_policy  # the template's own
        assert (Path(detail.path) / "main.py").read_text() == detail.main_content
        assert Path(detail.path).name == detail.uid
        assert len(detail.created_at) == 19
        # What was read may be sent back as it is.
        await models.UpdateModel(models_pb2.UpdateModelRequest(model_name="digits", model=detail))
        assert await models.GetModel(models_pb2.GetModelRequest(model_name="digits")) == detail
        files = await models.ListModelFiles(models_pb2.ListModelFilesRequest(model_name="digits"))
        assert "digits/main.py" in files.value.split("\n")
        assert "digits/template.json" not in files.value
        text = await models.ReadModelFile(models_pb2.ReadModelFileRequest(file_name="digits/main.py"))
        assert text.value == detail.main_content
        change = models_pb2.ModelDetail(edited_file_path="main.py", edited_file_content="pass\n")
        await models.SaveModelFile(models_pb2.SaveModelFileRequest(model_name="digits", model=change))
        text = await models.ReadModelFile(models_pb2.ReadModelFileRequest(file_name="digits/main.py"))
        assert text.value == "pass\n"
        assert [model.name for model in await collect(models.ListModels(models_pb2.ListModelsRequest()))] == ["digits"]
        call = models.DeleteModel(models_pb2.DeleteModelRequest(model_name="digits"))
        await call
        assert dict(await call.initial_metadata() or ())["x-http-code"] == "204"


async def test_refusals_over_the_wire(models: models_pb2_grpc.ModelServiceStub, peers: PlayedPeers) -> None:
    with acting_as(ALICE):
        await models.CreateModel(new_model())
        assert (await refusal(models.CreateModel(new_model()))).code is Code.ALREADY_EXISTS
        wrong = new_model("other")
        wrong.hyperparameters.epochs = 0
        error = await refusal(models.CreateModel(wrong))
        assert (error.code, error.metadata["field"]) == (Code.INVALID_ARGUMENT, "hyperparameter.epoch")
        wrong.hyperparameters.learning_rate = float("nan")
        assert (await refusal(models.CreateModel(wrong))).metadata["field"] == "hyperparameter.learningrate"
        peers.running["digits"] = "training 't1'"
        error = await refusal(models.DeleteModel(models_pb2.DeleteModelRequest(model_name="digits")))
        assert error.code is Code.ABORTED
    with acting_as(BOB):
        error = await refusal(models.GetModel(models_pb2.GetModelRequest(model_name="digits")))
        assert error.code is Code.PERMISSION_DENIED
    with acting_as(ADMIN):
        error = await refusal(models.GetModel(models_pb2.GetModelRequest(model_name="none")))
        assert error.code is Code.NOT_FOUND


async def test_frameworks(client: Client) -> None:
    stub = client.stub(models_pb2_grpc.FrameworkServiceStub)
    with acting_as(ALICE):
        names = [name.value for name in await collect(stub.ListFrameworkNames(models_pb2.ListFrameworkNamesRequest()))]
        details = await collect(stub.ListFrameworks(models_pb2.ListFrameworksRequest(backend="PYTORCH")))
        assert "PyTorch" in names
        assert [(detail.backend, detail.accelerator) for detail in details] == [
            ("PyTorch", "Native"),
            ("PyTorch", "Elastic"),
        ]
        with pytest.raises(grpc.aio.AioRpcError, match="Caffe, TensorFlow, PyTorch"):
            await collect(stub.ListFrameworks(models_pb2.ListFrameworksRequest(backend="mxnet")))


def upload(content: Iterator[bytes], disposition: str) -> Iterator[models_pb2.UploadWeightFileRequest]:
    request = models_pb2.UploadWeightFileRequest()
    request.body.content_type = f"multipart/form-data; boundary={BOUNDARY}"
    request.body.data = f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode()
    yield request
    for block in content:
        request = models_pb2.UploadWeightFileRequest()
        request.body.data = block
        yield request
    request = models_pb2.UploadWeightFileRequest()
    request.body.data = f"\r\n--{BOUNDARY}--\r\n".encode()
    yield request


async def test_weights_of_any_size_are_taken_in_bounded_memory(
    models: models_pb2_grpc.ModelServiceStub, tmp_path: Path
) -> None:
    block = bytes(range(256)) * 4096
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with acting_as(ALICE):
        call = models.UploadWeightFile(upload((block for _ in range(100)), 'name="file"; filename="big.pth"'))
        await call
        assert dict(await call.initial_metadata() or ())["x-http-code"] == "201"
        kept = tmp_path / "weights" / "alice" / "big.pth"
        assert kept.stat().st_size == 100 * len(block)
        grown_kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown_kilobytes < 60 * 1024
        again = models.UploadWeightFile(upload(iter([b"x"]), 'name="file"; filename="big.pth"'))
        assert (await refusal(again)).code is Code.ALREADY_EXISTS
        # The published client sends bytes without a name.
        await models.UploadWeightFile(upload(iter([b"abc"]), 'name="file"'))
        assert (kept.parent / "weights-ba7816bf8f01").read_bytes() == b"abc"
        await models.UploadWeightFile(upload(iter([b"abc"]), 'name="net.pth"'))
        assert (kept.parent / "net.pth").exists()


@pytest.mark.parametrize("disposition", ['name="file"; filename=".."', 'name="file"; filename="a\tb"'])
async def test_bad_weight_names(models: models_pb2_grpc.ModelServiceStub, disposition: str) -> None:
    with acting_as(ALICE):
        error = await refusal(models.UploadWeightFile(upload(iter([b"x"]), disposition)))
        assert (error.code, error.metadata["field"]) == (Code.INVALID_ARGUMENT, "file")
