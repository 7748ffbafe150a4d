"""What can be done with kernels and their models; ports say what is needed for it."""
