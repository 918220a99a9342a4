"""Trained parts of defenses: one network per file, trained by the workflow or read from a file of declared digest."""
