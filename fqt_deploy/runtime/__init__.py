"""Loads and runs a compiled step; imports neither torch nor the compiler."""
