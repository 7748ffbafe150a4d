"""The elastic modules under the name that notebooks import: `from pyedt.fabric_model import FabricModel`."""
