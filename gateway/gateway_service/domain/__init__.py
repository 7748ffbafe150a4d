"""Users, sessions, credentials and passwords: what they are and which are valid."""
