"""The Triton inference server: where it lies, how it is started, kept and asked."""
