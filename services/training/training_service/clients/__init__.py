"""Other services behind the ports of the use cases."""
