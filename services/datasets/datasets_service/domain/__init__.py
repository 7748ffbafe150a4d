"""What a dataset is; no I/O."""
