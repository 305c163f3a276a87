"""Code generation: from a lowered training graph to a TVM module."""
