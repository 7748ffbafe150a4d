"""The scheduling service: one queue for everything that runs long, and the engines that run it."""
