"""Descriptions of devices and their schedule rules."""
