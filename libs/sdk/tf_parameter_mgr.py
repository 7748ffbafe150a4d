"""The name under which programs import `dlmesh_sdk.tf_parameters`, where everything is described."""

from dlmesh_sdk.tf_parameters import *  # noqa: F403
