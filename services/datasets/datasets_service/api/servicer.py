"""The RPCs: each translates and calls one use case."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc
from dlmesh.datasets.v1 import datasets_pb2, datasets_pb2_grpc
from google.protobuf.empty_pb2 import Empty
from servicekit.times import utc_now

from datasets_service.api.mapping import csv_slice, dataset_detail, dataset_request, object_image
from datasets_service.usecases.create_dataset import CreateDataset
from datasets_service.usecases.delete_dataset import DeleteDataset
from datasets_service.usecases.get_dataset import GetDataset
from datasets_service.usecases.list_datasets import ListDatasets
from datasets_service.usecases.list_object_images import ListObjectImages
from datasets_service.usecases.read_csv import ReadCsv
from datasets_service.usecases.stop_dataset import StopDataset

Context: TypeAlias = grpc.aio.ServicerContext


class DatasetServicer(datasets_pb2_grpc.DatasetServiceServicer):
    """/datasets."""

    def __init__(
        self,
        create: CreateDataset,
        get: GetDataset,
        list_visible: ListDatasets,
        stop: StopDataset,
        delete: DeleteDataset,
        read_csv: ReadCsv,
        list_object_images: ListObjectImages,
    ) -> None:
        self._create, self._get, self._list = create, get, list_visible
        self._stop, self._delete = stop, delete
        self._read_csv, self._list_object_images = read_csv, list_object_images

    async def CreateDataset(self, request: datasets_pb2.CreateDatasetRequest, context: Context) -> Empty:
        await self._create(dataset_request(request))
        return Empty()

    async def ListDatasets(
        self, request: datasets_pb2.ListDatasetsRequest, context: Context
    ) -> AsyncIterator[datasets_pb2.DatasetDetail]:
        async for dataset in self._list():
            yield dataset_detail(dataset, utc_now())

    async def GetDataset(self, request: datasets_pb2.GetDatasetRequest, context: Context) -> datasets_pb2.DatasetDetail:
        return dataset_detail(await self._get(request.name), utc_now())

    async def DeleteDataset(self, request: datasets_pb2.DeleteDatasetRequest, context: Context) -> Empty:
        await self._delete(request.name)
        return Empty()

    async def StopDataset(self, request: datasets_pb2.StopDatasetRequest, context: Context) -> Empty:
        await self._stop(request.name)
        return Empty()

    async def ReadCsv(self, request: datasets_pb2.ReadCsvRequest, context: Context) -> datasets_pb2.CsvSlice:
        start = request.start if request.HasField("start") else None
        length = request.length if request.HasField("length") else None
        rows = await self._read_csv(request.name, request.split, start, length)
        return await asyncio.to_thread(csv_slice, rows)

    async def ListObjectImages(
        self, request: datasets_pb2.ListObjectImagesRequest, context: Context
    ) -> AsyncIterator[datasets_pb2.ObjectImage]:
        start = request.start if request.HasField("start") else None
        length = request.length if request.HasField("length") else None
        async for image in self._list_object_images(request.name, request.split, start, length):
            yield object_image(image)
