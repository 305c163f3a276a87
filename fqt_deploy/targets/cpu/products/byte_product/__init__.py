"""Products of codes as bytes in vector registers (AVX-512 VNNI)."""
