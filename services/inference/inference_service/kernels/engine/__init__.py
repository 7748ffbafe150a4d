"""Kernels of Elastic Distributed Inference: their processes, who is given which task, and how many of them run."""
