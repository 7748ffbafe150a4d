"""The gateway: Envoy's configuration, its authorisation service, users, sessions, health and configuration."""
