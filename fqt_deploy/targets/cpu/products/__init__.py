"""Schedule rules of 1-bit products."""
