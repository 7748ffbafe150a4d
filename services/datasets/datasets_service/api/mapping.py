"""Messages to requests, datasets to details: both ways side by side."""

from __future__ import annotations

import json
from datetime import datetime

from dlmesh.datasets.v1 import datasets_pb2
from google.protobuf.struct_pb2 import ListValue, Value
from servicekit.times import format_time

from datasets_service.domain.dataset import Dataset, Split
from datasets_service.domain.object_image import ObjectImage
from datasets_service.domain.request import DatasetRequest, ImageOptions
from datasets_service.domain.table import Cell, TableSlice


def dataset_request(message: datasets_pb2.CreateDatasetRequest) -> DatasetRequest:
    images = message.image_options
    return DatasetRequest(
        name=message.name,
        source_type=message.source_type,
        backend=message.backend,
        instance_group=message.instance_group_id,
        train_path=message.train_path,
        validation_path=message.validation_path,
        test_path=message.test_path,
        mean_file=message.mean_file_path,
        train_image_path=images.train_image_path,
        validation_image_path=images.validation_image_path,
        test_image_path=images.test_image_path,
        train_list=images.train_list_path,
        validation_list=images.validation_list_path,
        test_list=images.test_list_path,
        label_list=images.label_list_path,
        uses_text_lists=images.uses_text_lists,
        color_mode=images.color_mode,
        width=images.width,
        height=images.height,
        resize_mode=images.resize_mode,
        validation_percentage=images.validation_percentage,
        test_percentage=images.test_percentage,
        split_algorithm=images.split_algorithm,
        split_seed=images.split_seed,
        shards=message.shards,
        by_class=message.by_class,
        plugin=message.plugin,
    )


def dataset_detail(dataset: Dataset, now: datetime) -> datasets_pb2.DatasetDetail:
    options, records = dataset.options, dataset.records
    splits = records.splits if records else {}
    train, validation, test = (splits.get(name) for name in ("train", "val", "test"))
    return datasets_pb2.DatasetDetail(
        name=dataset.name,
        backend=str(dataset.backend),
        train_path=train.path if train else options.train_path,
        validation_path=validation.path if validation else options.validation_path,
        test_path=test.path if test else options.test_path,
        mean_file_path=records.mean_file if records else options.mean_file,
        status=str(dataset.status),
        run_duration_seconds=dataset.run_seconds(now),
        instance_group_id=dataset.group.id,
        instance_group_name=dataset.group.name,
        master_url=dataset.group.master_url,
        driver_id=dataset.driver_id,
        application_id=dataset.job_id,
        image_options=_image_options(options.images),
        train_labels=_label_pairs(train),
        validation_labels=_label_pairs(validation),
        test_labels=_label_pairs(test),
        source_type=str(dataset.source_type),
        submitted_at=format_time(dataset.created_at),
        owner=dataset.owner,
        size_bytes=records.size_bytes if records else 0,
        shards=options.shards,
        by_class=options.by_class,
        plugin=options.plugin,
        status_message=dataset.status_message,
        content_hash=records.content_hash if records else "",
        uid=dataset.uid,
    )


def csv_slice(table: TableSlice) -> datasets_pb2.CsvSlice:
    """Takes a moment for a large slice."""
    return datasets_pb2.CsvSlice(
        columns=table.columns,
        index=map(str, range(table.start, table.start + len(table.rows))),
        data=[ListValue(values=map(_cell, row)) for row in table.rows],
        json_text=table.json_text,
    )


def object_image(image: ObjectImage) -> datasets_pb2.ObjectImage:
    labels = [{"label": box.label, "bbox": box.bbox} for box in image.boxes]
    return datasets_pb2.ObjectImage(name=image.name, path=image.path, labels=json.dumps(labels, ensure_ascii=False))


def _cell(cell: Cell) -> Value:
    match cell:
        case None:
            return Value(null_value=0)  # type: ignore[arg-type]
        case str():
            return Value(string_value=cell)
        case _:
            return Value(number_value=cell)


def _image_options(images: ImageOptions) -> datasets_pb2.ImageOptions:
    return datasets_pb2.ImageOptions(
        uses_text_lists=images.uses_text_lists,
        train_list_path=images.train_list,
        validation_list_path=images.validation_list,
        test_list_path=images.test_list,
        label_list_path=images.label_list,
        train_image_path=images.train_path,
        validation_image_path=images.validation_path,
        test_image_path=images.test_path,
        color_mode=str(images.color_mode),
        height=images.height,
        width=images.width,
        resize_mode=str(images.resize_mode),
        validation_percentage=images.validation_percentage,
        test_percentage=images.test_percentage,
        split_algorithm=images.split_algorithm,
        split_seed=images.split_seed,
    )


def _label_pairs(split: Split | None) -> list[ListValue]:
    pairs = []
    for label, count in split.labels.items() if split else ():
        pair = ListValue()
        pair.extend([label, str(count)])
        pairs.append(pair)
    return pairs
