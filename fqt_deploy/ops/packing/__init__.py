"""Ops that pack signs and codes into machine words."""
