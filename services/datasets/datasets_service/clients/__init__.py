"""The other services behind our ports."""
