"""`python -m inference_service`."""

from servicekit.server import run_service

from inference_service.wiring import build

if __name__ == "__main__":
    run_service("inference", build)
