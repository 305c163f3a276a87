"""The CUDA target: the whole step on one NVIDIA GPU."""
