"""One verb a file: authenticate, log on, manage users, report health and configuration."""
