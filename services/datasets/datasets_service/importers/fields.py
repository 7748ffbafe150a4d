"""Checks of request fields that several source types share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from servicekit.errors import invalid

from datasets_service.domain.request import DatasetRequest
from datasets_service.domain.splitting import SplitAlgorithm, SplitMethod
from datasets_service.usecases.ports import Sources

SPLITS = ("train", "val", "test")


def split_paths(request: DatasetRequest) -> dict[str, tuple[str, str]]:
    """Field and text of the source of every split; it may be given in either of two fields. Empty when in none."""
    image_paths = (request.train_image_path, request.validation_image_path, request.test_image_path)
    paths = (request.train_path, request.validation_path, request.test_path)
    return {
        split: _choose(split, image_path, path)
        for split, image_path, path in zip(SPLITS, image_paths, paths, strict=True)
    }


def _choose(split: str, image_path: str, path: str) -> tuple[str, str]:
    if image_path and path and image_path != path:
        raise invalid(f"{split}path", path, f"nothing, or the same as imagedetail.{split}imagepath ({image_path!r})")
    if path and not image_path:
        return f"{split}path", path
    return f"imagedetail.{split}imagepath", image_path


def plain_paths(request: DatasetRequest, sources: Sources) -> dict[str, Path]:
    """The sources of the splits that are given, from trainpath, valpath and testpath; training must be."""
    texts = zip(SPLITS, (request.train_path, request.validation_path, request.test_path), strict=True)
    return {split: sources.path(f"{split}path", text) for split, text in texts if text or split == "train"}


def require_percentages(request: DatasetRequest, own_sources: Sequence[str]) -> SplitAlgorithm:
    """The split algorithm, when its percentages are possible; `own_sources` are the splits that have their own."""
    algorithm = SplitAlgorithm.parse(request.split_algorithm)
    percentages = {"val": request.validation_percentage, "test": request.test_percentage}
    for split, percentage in percentages.items():
        field = f"imagedetail.{split}percentage"
        if not 0 <= percentage <= 100:
            raise invalid(field, percentage, "0 to 100")
        if percentage and split in own_sources:
            raise invalid(field, percentage, f"0 when {split} has a source of its own")
    if sum(percentages.values()) >= 100:
        raise invalid(
            "imagedetail.valpercentage",
            percentages["val"],
            f"less than 100 together with imagedetail.testpercentage ({percentages['test']}): training keeps some",
        )
    if algorithm.method is SplitMethod.K_FOLD and (percentages["val"] or "val" in own_sources):
        raise invalid(
            "imagedetail.splitalgorithm",
            request.split_algorithm,
            "another one when validation has a percentage or a source of its own: k-fold validates on a fold",
        )
    if algorithm.method is SplitMethod.BY_NAME and (any(percentages.values()) or own_sources):
        raise invalid(
            "imagedetail.splitalgorithm",
            request.split_algorithm,
            "another one when validation or test has a percentage or a source of its own: by-name reads the file names",
        )
    return algorithm
