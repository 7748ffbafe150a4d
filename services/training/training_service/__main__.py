"""`python -m training_service`."""

from servicekit.server import run_service

from training_service.wiring import build

if __name__ == "__main__":
    run_service("training", build)
