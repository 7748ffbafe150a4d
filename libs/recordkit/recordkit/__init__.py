"""The file formats of datasets, reading and writing side by side: Caffe's Datum in LMDB, tf.train.Example in TFRecords.

Imports write with it, the modules that programs import read with it; it imports neither torch nor TensorFlow.
"""
