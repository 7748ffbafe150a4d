"""Runs program.py beside it and notes when: its optimizer steps, waits for data and checkpoints. A template's main.py.

Rank 0 appends one JSON object a line to timed.jsonl in --train_dir, so that what was noted outlives a kill.
"""

import json
import os
import runpy
import sys
import time
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_post_hook

sys.path.insert(0, str(Path.cwd()))


def note_everything(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    notes = (folder / "timed.jsonl").open("a", buffering=1)

    def note(**facts: object) -> None:
        notes.write(json.dumps(facts) + "\n")

    note(
        kind="start", pid=os.getpid(), argv=sys.argv, cwd=str(Path.cwd()), environment=dict(os.environ), at=time.time()
    )
    register_optimizer_step_post_hook(lambda *_: note(kind="step", at=time.time()))

    from dlmesh_sdk import checkpoints, monitor

    wait, save = monitor.PytorchMonitor.waited, checkpoints.Checkpoints.save

    def waited(self: monitor.PytorchMonitor, seconds: float) -> None:
        note(kind="waited", seconds=seconds, at=time.time())
        wait(self, seconds)

    def saved(self: checkpoints.Checkpoints, *arguments: object, **state: object) -> None:
        begin = time.time()
        save(self, *arguments, **state)
        copied = time.time()
        self._writing.add_done_callback(lambda _: note(kind="checkpoint", at=begin, copied=copied, ended=time.time()))

    monitor.PytorchMonitor.waited, checkpoints.Checkpoints.save = waited, saved


if os.environ.get("RANK", "0") == "0":
    note_everything(Path(sys.argv[sys.argv.index("--train_dir") + 1]))
runpy.run_path(os.environ.get("TIMED_PROGRAM", "program.py"), run_name="__main__")
