"""Profiles of compiled steps: measured without the compiler and PyTorch, shown as tables, timelines and reports."""
