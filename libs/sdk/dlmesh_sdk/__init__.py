"""What is behind the modules that programs import, and what the built-in templates use beyond them.

One package, so that no file of a program - its own `checkpoints.py`, say - hides any of it.
"""
