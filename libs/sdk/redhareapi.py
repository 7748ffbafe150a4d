"""What kernels of Elastic Distributed Inference are made of, under the names that their original platform published."""

from __future__ import annotations

from dlmesh_sdk.kernel_program import Kernel, KernelContext, TaskContext

__all__ = ["Kernel", "KernelContext", "TaskContext"]
