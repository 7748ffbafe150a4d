"""What the service does, one file for each concern; ports are in ports.py."""
