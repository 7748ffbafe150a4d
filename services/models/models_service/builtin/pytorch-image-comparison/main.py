"""Trains the model of model.py on pictures with labels: those of one label are to be near each other, others far."""

import argparse
import functools

import model
import pth_parameter_mgr as parameters
from dlmesh_sdk.gang import join
from dlmesh_sdk.picture_comparison import alike_loss, embed, find_limit, nearest_accuracy
from dlmesh_sdk.record_datasets import open_records, read_labels
from dlmesh_sdk.served.comparison import ServedComparison
from dlmesh_sdk.served.inference import Predictor
from dlmesh_sdk.training_loop import Task, train, write_serving

# Numbers of a vector.
LENGTH = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_dir", required=True, help="where checkpoints and weights are written")
    parser.add_argument("--weights", default="", help="folder or file with initial weights")
    arguments, _ = parser.parse_known_args()

    gang = join(parameters.getSeed())
    records = parameters.getTrainData()
    # Without labels there is nothing to tell alike pictures by.
    read_labels(records)
    channels, height, width = open_records(records, model.preprocess).shape
    shape = {"channels": channels, "height": height, "width": width}
    to_input = functools.partial(model.preprocess, **shape)
    test_data = open_records(parameters.getTestData(), to_input)
    serving = {"task": "comparison", "length": LENGTH, **shape}
    task = Task(
        model=model.build_model(LENGTH, **shape),
        train_data=open_records(records, to_input),
        test_data=test_data,
        loss=alike_loss,
        metrics={"accuracy": nearest_accuracy},
        serving=serving,
    )
    train(task, gang, arguments.train_dir, arguments.weights)
    if gang.is_first:
        # The final weights say how far alike pictures are from each other.
        predict = Predictor(ServedComparison(serving, model), arguments.train_dir)
        limit, accuracy = find_limit(*embed(predict, test_data))
        print(
            f"Pictures nearer than {limit:.4f} are similar: right for {accuracy:.1%} of pairs of test data", flush=True
        )
        write_serving(arguments.train_dir, {**serving, "similar_below": limit, "pair_accuracy": accuracy})


if __name__ == "__main__":
    main()
