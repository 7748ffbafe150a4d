"""The name under which programs import `dlmesh_sdk.monitor`, where everything is described."""

from dlmesh_sdk.monitor import PytorchMonitor

__all__ = ["PytorchMonitor"]
