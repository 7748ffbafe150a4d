"""Models with a kernel, their profiles and manifests; what a pool of kernels is asked and answers."""
