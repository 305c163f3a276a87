"""Packaging of what travels with compiled code: TVM's runtime libraries and the C interface."""
