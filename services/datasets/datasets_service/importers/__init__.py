"""One source type a file: what a request for it must say, and the import itself."""
