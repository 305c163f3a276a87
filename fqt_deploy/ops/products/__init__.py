"""Products of a training step, in fp32 and on bits, and the integer corrections that belong to them."""
