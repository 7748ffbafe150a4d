"""Predicts the rows of a CSV file, or of a split of a dataset, with trained weights."""

from dlmesh_sdk.table_datasets import TableEncoding
from dlmesh_sdk.table_prediction import predict
from model import build_model

if __name__ == "__main__":
    predict(TableEncoding, build_model)
