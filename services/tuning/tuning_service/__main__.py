"""`python -m tuning_service`."""

from servicekit.server import run_service

from tuning_service.wiring import build

if __name__ == "__main__":
    run_service("tuning", build)
