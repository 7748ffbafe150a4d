"""What runs gangs of ranks; one package an engine, listed in the registry."""
