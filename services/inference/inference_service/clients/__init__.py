"""Other services and Triton behind the ports of the use cases."""
