"""The other services behind the use cases' ports."""
