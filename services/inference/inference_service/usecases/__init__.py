"""What can be done; ports say what is needed for it."""
