"""From a lowered training graph to a TVM module."""
