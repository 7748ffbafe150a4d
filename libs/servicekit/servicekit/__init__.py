"""What every dlmesh service is built from: serving, errors, identity, settings, storage and reconciliation."""
