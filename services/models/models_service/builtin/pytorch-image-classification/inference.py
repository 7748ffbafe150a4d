"""Classifies a folder of pictures, or a split of a dataset, with trained weights."""

from dlmesh_sdk.image_classification import classify
from model import build_model, preprocess

if __name__ == "__main__":
    classify(build_model, preprocess)
