"""Targets: descriptions of devices and their schedule rules."""
