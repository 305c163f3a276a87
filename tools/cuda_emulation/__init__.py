"""Runs compiled CUDA steps on a CPU: emitted kernels as C++, and a stand-in for the CUDA runtime and driver."""
