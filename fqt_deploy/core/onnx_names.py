"""Names in exported ONNX files that writer and reader share."""

MANIFEST_KEY = "fqt.manifest"
"""Key of the model's metadata that holds the manifest as JSON; checkpoints are matched by it."""

NEXT = "::next"
"""Ending of the name of an output that is the next value of a state input."""
