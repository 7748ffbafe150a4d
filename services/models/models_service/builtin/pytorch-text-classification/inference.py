"""Classifies the texts of a CSV file, or of a split of a dataset, with trained weights."""

from dlmesh_sdk.table_prediction import predict
from dlmesh_sdk.text_encoding import TextEncoding
from model import build_model

if __name__ == "__main__":
    predict(TextEncoding, build_model)
