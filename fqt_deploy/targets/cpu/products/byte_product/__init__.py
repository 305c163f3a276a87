"""Products of codes as bytes in vector registers (VNNI, pairs by AVX2, dot products on ARM)."""
