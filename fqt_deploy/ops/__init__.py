"""Every op of the quantized and lowered graphs, one per file."""
