"""Support for dlmesh's own tests: real servers, started once a session, stopped at its end."""
