"""What runs inside a prediction job."""
