"""Search algorithms: one file each. Their processes load them by name; the service itself only reads the registry."""
