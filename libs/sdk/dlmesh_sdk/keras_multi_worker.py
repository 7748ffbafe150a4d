"""Makes `model.fit` of Keras 3 work under MultiWorkerMirroredStrategy.

Keras 3 averages a whole batch and scalar results over workers in a way that TensorFlow's collective strategy refuses.
Importing TensorFlow and Keras takes seconds: only ranks of a training with several workers need this.
"""

from __future__ import annotations

from typing import Any


def mend_fit() -> None:
    """Replace the two places; nothing is done for other strategies, or where Keras does not run on TensorFlow."""
    import keras
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        return
    from keras.src.backend.tensorflow import trainer

    build, reduce = trainer.TensorFlowTrainer._maybe_symbolic_build, trainer.reduce_per_replica

    def is_multi_worker(strategy: Any) -> bool:
        return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)

    def build_from_own_part(self: Any, iterator: Any = None, data_batch: Any = None) -> Any:
        if iterator is not None and is_multi_worker(self._distribute_strategy):
            # Only shapes matter here, and those of this worker's part are as good.
            *_, batches = next(iter(iterator))
            local = self._distribute_strategy.experimental_local_results
            iterator, data_batch = None, tf.nest.map_structure(lambda value: local(value)[0], next(batches))
        return build(self, iterator, data_batch)

    def reduce_scalars(values: Any, strategy: Any, reduction: str) -> Any:
        if reduction in ("auto", "mean") and is_multi_worker(strategy):
            return tf.nest.map_structure(lambda value: strategy.reduce("MEAN", value, axis=None), values)
        return reduce(values, strategy, reduction)

    trainer.TensorFlowTrainer._maybe_symbolic_build = build_from_own_part
    trainer.reduce_per_replica = reduce_scalars
