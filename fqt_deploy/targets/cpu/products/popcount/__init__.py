"""Products of bits by popcount: LLVM vectorizes it for every processor."""
