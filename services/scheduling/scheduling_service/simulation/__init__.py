"""The queue on a cluster that is only imagined: to try a policy before it is set, and for tests and benchmarks."""
