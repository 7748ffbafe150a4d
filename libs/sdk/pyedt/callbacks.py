"""As the module `callbacks`."""

from callbacks import Callback, LearningRatePolicy, LoggerCallback

__all__ = ["Callback", "LearningRatePolicy", "LoggerCallback"]
