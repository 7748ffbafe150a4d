"""Event files as TensorBoard reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# In a process of its own, without TensorFlow: where that is installed, TensorBoard would load it to open a file.
_READ = """
import json, sys, types
sys.modules["tensorboard.compat.notf"] = types.ModuleType("tensorboard.compat.notf")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "tensors": 0}).Reload()
tags = events.scalars.Keys()
json.dump({tag: [(at.step, at.value, at.wall_time) for at in events.Scalars(tag)] for tag in tags}, sys.stdout)
assert "tensorflow" not in sys.modules
"""


def read_curves(folder: str | Path) -> dict[str, list[tuple[int, float, float]]]:
    """Step, value and time of every point of the folder, by tag."""
    output = subprocess.run([sys.executable, "-c", _READ, str(folder)], check=True, capture_output=True).stdout
    return {tag: [(step, value, time) for step, value, time in points] for tag, points in json.loads(output).items()}
