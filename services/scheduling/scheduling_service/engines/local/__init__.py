"""The embedded engine: keepers and ranks on this machine."""
