"""Inference models served by Triton, and predictions made with them."""
