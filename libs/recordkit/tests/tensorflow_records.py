"""Run as a program beside the tests: TensorFlow reads, or writes, a TFRecord file. `read PATH` prints JSON."""

from __future__ import annotations

import json
import sys

import tensorflow as tf


def read(path: str) -> None:
    """Every record through tf.data and TensorFlow's own parser and decoders; pixels as hexadecimal digits."""
    number, text = tf.io.FixedLenFeature([], tf.int64), tf.io.FixedLenFeature([], tf.string)
    features = {
        "image/encoded": text,
        "image/format": text,
        "image/height": number,
        "image/width": number,
        "image/channels": number,
        "image/colorspace": text,
        "image/filename": text,
        "image/class/label": tf.io.FixedLenFeature([], tf.int64, default_value=-1),
        "image/class/text": tf.io.FixedLenFeature([], tf.string, default_value=""),
        "image/vector": tf.io.VarLenFeature(tf.float32),
    }
    records = []
    for record in tf.data.TFRecordDataset(path):
        example = tf.io.parse_single_example(record, features)
        pixels = tf.io.decode_image(example["image/encoded"]).numpy()
        values = {name: example[name].numpy() for name in features if name != "image/vector"}
        records.append(
            {
                **{
                    name: value.decode() if isinstance(value, bytes) else int(value)
                    for name, value in values.items()
                    if name != "image/encoded"
                },
                "image/vector": tf.sparse.to_dense(example["image/vector"]).numpy().tolist(),
                "shape": pixels.shape,
                "pixels": pixels.tobytes().hex(),
            }
        )
    json.dump(records, sys.stdout)


def write(path: str) -> None:
    """Three records as TensorFlow's users write them."""
    with tf.io.TFRecordWriter(path) as writer:
        for label in range(3):
            pixels = tf.fill([4, 5, 3], tf.cast(40 * label, tf.uint8))
            values = {
                "image/encoded": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[tf.io.encode_png(pixels).numpy()])
                ),
                "image/format": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"png"])),
                "image/height": tf.train.Feature(int64_list=tf.train.Int64List(value=[4])),
                "image/width": tf.train.Feature(int64_list=tf.train.Int64List(value=[5])),
                "image/channels": tf.train.Feature(int64_list=tf.train.Int64List(value=[3])),
                "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                "image/class/text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[f"größe {label}".encode()])),
                "image/vector": tf.train.Feature(float_list=tf.train.FloatList(value=[label / 2, -1])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=values)).SerializeToString())


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](sys.argv[2])
