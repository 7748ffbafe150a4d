"""As the module `fabric_model`."""

from fabric_model import FabricModel

__all__ = ["FabricModel"]
