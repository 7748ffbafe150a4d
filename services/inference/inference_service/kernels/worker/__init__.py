"""Programs of processes that are no service: they fork, guard and become kernels, each imported by its file name."""
