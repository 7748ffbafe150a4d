"""What a template, a model and its hyperparameters are, and which values they may hold."""
