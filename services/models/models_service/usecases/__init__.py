"""What can be asked of this service; needs neither gRPC nor SQL."""
