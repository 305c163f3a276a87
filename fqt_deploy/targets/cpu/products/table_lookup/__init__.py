"""Products of codes by table: a permutation of the bytes of a whole register looks up subset sums (AVX-512 VBMI)."""
