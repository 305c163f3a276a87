"""Ops that select samples and channels, and the random streams they draw from."""
