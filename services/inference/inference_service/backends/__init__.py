"""How a trained model becomes an entry of Triton's model repository, one file for each way of running it."""
