"""The name under which programs import `dlmesh_sdk.pth_parameters`, where everything is described."""

from dlmesh_sdk.pth_parameters import *  # noqa: F403
