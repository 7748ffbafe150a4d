"""Data that is there already: opened, counted and checked where it lies, never copied or written to."""
