"""Schedule rules of fp32 products."""
