"""Models with a kernel in the database of the service; their files on disk."""
