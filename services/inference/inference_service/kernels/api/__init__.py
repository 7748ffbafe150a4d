"""The gRPC face of kernels: messages to requests, models and outputs to messages."""
