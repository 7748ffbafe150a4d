"""`python -m scheduling_service`."""

from servicekit.server import run_service

from scheduling_service.wiring import build

run_service("scheduling", build)
