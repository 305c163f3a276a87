"""Products of bits and codes as bytes in tile registers (AMX)."""
