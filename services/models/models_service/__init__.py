"""Model templates, models, weight files and frameworks."""
