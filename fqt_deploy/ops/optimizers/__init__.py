"""Ops that update parameters and their optimizer state in place."""
