"""The gRPC face: messages to requests, runs to details."""
