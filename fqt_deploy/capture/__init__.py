"""Capture: from a user's model file to a training graph."""
