"""Checks of every byte of what was written: bundles, run directories, tracks."""
