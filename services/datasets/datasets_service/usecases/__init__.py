"""What callers can do, one verb a file."""
