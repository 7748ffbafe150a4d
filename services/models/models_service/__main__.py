"""`python -m models_service`."""

from servicekit.server import run_service

from models_service.wiring import build

if __name__ == "__main__":
    run_service("models", build)
