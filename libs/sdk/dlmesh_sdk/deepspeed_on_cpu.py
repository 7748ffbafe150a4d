"""DeepSpeed on a machine that has no GPU and perhaps no compiler."""

from __future__ import annotations

import importlib.util
from typing import Any


def install() -> None:
    """Register a CPU accelerator that never compiles; call it before anything else of DeepSpeed is used.

    DeepSpeed's own one builds a shared-memory collective with g++ on first use (half a minute, and a killed build
    leaves a lock that hangs every later job). Without it the same collectives run on gloo, measurably as fast.
    Does nothing where there is no DeepSpeed: elastic programs do without.
    """
    if importlib.util.find_spec("deepspeed") is None:
        return
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    class CompilerFreeCpuAccelerator(CPU_Accelerator):
        def create_op_builder(self, op_name: str) -> Any:
            return None if op_name == "ShareMemCommBuilder" else super().create_op_builder(op_name)

    set_accelerator(CompilerFreeCpuAccelerator())
