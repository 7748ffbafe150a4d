"""Fixtures for the whole repository."""

pytest_plugins = ["testkit.plugin", "testkit.platform", "testkit.spark"]
