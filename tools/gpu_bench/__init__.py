"""The benchmark that ``tools/bench_gpu.py`` builds on one machine and runs on another."""
