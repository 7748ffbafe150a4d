"""What `--exec-start` may name."""
