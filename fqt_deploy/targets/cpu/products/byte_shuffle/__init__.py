"""Products of bits and codes by table: a byte shuffle looks up sixteen entries (SSSE3, AVX2, NEON)."""
