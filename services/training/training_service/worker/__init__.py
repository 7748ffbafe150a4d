"""What runs inside a launched process. The control plane runs nothing of it, and what it imports needs no torch."""
