"""ATen ops that have a kernel."""
