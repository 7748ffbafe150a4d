"""`python -m datasets_service`."""

from servicekit.server import run_service

from datasets_service.wiring import build

if __name__ == "__main__":
    run_service("datasets", build)
