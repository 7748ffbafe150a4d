"""The net of the prototxt files beside this one, as it is served."""

from pathlib import Path

from caffe_nets import serving

FOLDER = Path(__file__).parent


def build_model(num_classes, channels, height, width):
    return serving.build_model(FOLDER, num_classes, channels, height, width)


def preprocess(image, channels, height, width):
    return serving.preprocess(FOLDER, image, channels, height, width)
