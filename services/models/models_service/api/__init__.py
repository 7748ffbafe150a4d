"""The gRPC face: servicers and the mapping between messages and domain."""
