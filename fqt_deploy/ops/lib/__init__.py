"""Helpers that several ops share: shapes, bits, random numbers, rounding, ONNX bodies."""
