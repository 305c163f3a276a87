"""Names in exported ONNX files that writer and reader share."""

MANIFEST_KEY = "fqt.manifest"
"""Key of the model's metadata that holds the manifest as JSON; checkpoints are matched by it."""

NEXT = "::next"
"""Ends the name of the output that is the next value of a state input."""
