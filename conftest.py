"""Fixtures for the whole repository, and how properties are tested."""

from hypothesis import settings

pytest_plugins = ["testkit.plugin", "testkit.platform", "testkit.spark"]

# How long an example takes says how busy the machine is: no test is about that.
settings.register_profile("dlmesh", deadline=None)
settings.load_profile("dlmesh")
