"""`python -m gateway_service`."""

from servicekit.server import run_service

from gateway_service.wiring import build

if __name__ == "__main__":
    run_service("gateway", build)
