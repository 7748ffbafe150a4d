"""In which order those that wait are served; one file a policy, listed in the registry."""
