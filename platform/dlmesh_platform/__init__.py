"""The platform as a whole: set-up, supervisor, the `dlmesh` command, the demo."""
