"""FabricModel: one training program for a number of workers that changes while it runs.

    from fabric_model import FabricModel

    model = FabricModel(net, get_datasets, torch.nn.functional.cross_entropy, torch.optim.SGD(net.parameters(), 0.1))
    model.train(10, 32, 4)

Under the platform it runs on one to `max_workers` workers, alone it trains in this process.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from dlmesh_sdk.fabric_options import read_options, read_sizing, train_folder


class FabricModel:
    """A torch module or a Keras model with its data, loss function and optimizer.

    FabricModel(model, getDatasets, loss_function, optimizer, metrics, worker_logger_callback, driver_logger_callback,
    save_to_onnx, keras_custom_objects, fn_batch_collate, user_callback, fn_step_train, fn_test, fn_args); all published
    spellings are understood (see `fabric_options`). `getDatasets()` returns (train, test), map-style, and runs on every
    worker. `fn_step_train(model, data, eva, train_loader, fn_args)` returns (accuracy in percent, loss) of one batch;
    `eva(outputs, targets)` is the accuracy in percent. `fn_test(model, test_iter, fn_args)` returns the loss.

    TypeError names an argument that is missing, unknown or given twice.
    """

    def __init__(self, *values: Any, **named: Any) -> None:
        self._options = read_options(values, named)

    def train(self, *values: Any, **named: Any) -> None:
        """Train to the end; SystemExit(143) after SIGTERM, with a checkpoint from which the next run goes on.

        train(epoch_number, batch_size, engines_number, num_dataloader_threads, validation_freq, checkpoint_freq,
        effective_batch_size, worker_memory, driver_memory, hardware_spec); see `dlmesh_sdk.fabric_options.Sizing`.
        Writes model_epoch_N.pth, with model_epoch_N_optimizer_state.pth, every `checkpoint_freq` epochs and
        model_epoch_final.pth in the end (for Keras .keras, without the optimizer's state) into DLMESH_TRAIN_DIR, else
        RESULT_DIR/model/train, else model/train.
        """
        options, sizing = self._options, read_sizing(values, named)
        if _is_keras(options.model):
            from dlmesh_sdk.fabric_keras import KerasFabric

            KerasFabric(options).train(sizing)
            return
        from dlmesh_sdk import run_parameters
        from dlmesh_sdk.gang import join
        from torch import nn

        if not isinstance(options.model, nn.Module):
            raise TypeError(f"FabricModel: model is {options.model!r}; it has to be a torch module or a Keras model")
        gang = join(run_parameters.getSeed() if os.environ.get("DLMESH_PARAMETERS") else 0)
        if (os.environ.get("DLMESH_SYNC_MODE") or "SYNC").upper() == "ASYNC":
            from dlmesh_sdk.fabric_async import AsyncRun

            AsyncRun(options, sizing, gang).to_the_end()
        else:
            from dlmesh_sdk.fabric_training import SyncRun

            SyncRun(options, sizing, gang).to_the_end()

    def download(self, out_dir: str | os.PathLike[str] = ".") -> str:
        """Copy the weights that `train` has written into `out_dir` (made if need be); its path.

        FileNotFoundError when there are none yet. Every worker copies: what it finds there is whole.
        """
        folder, target = train_folder(), Path(out_dir)
        files = [file for file in sorted(folder.glob("model*")) if file.is_file()]
        if not files:
            raise FileNotFoundError(f"there are no weights in {folder}; train first")
        target.mkdir(parents=True, exist_ok=True)
        for file in files:
            draft = target / f".draft-{os.environ.get('RANK', '0')}-{file.name}"
            shutil.copy2(file, draft)
            draft.replace(target / file.name)
        return str(target)


def _is_keras(model: Any) -> bool:
    return any(kind.__module__.split(".")[0] in ("keras", "tensorflow", "tf_keras") for kind in type(model).__mro__)
