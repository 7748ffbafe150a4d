"""What runs inside an import job: Pillow, NumPy and LMDB only, so that it starts at once."""
