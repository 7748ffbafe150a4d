"""The other services, seen through their health checks."""
