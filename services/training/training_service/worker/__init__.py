"""What runs inside a launched process; nothing here is imported by the control plane."""
