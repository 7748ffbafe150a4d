"""The gRPC face: messages to requests, predictions to details."""
