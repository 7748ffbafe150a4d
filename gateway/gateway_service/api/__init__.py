"""gRPC servicers of the gateway."""
