"""Hooks that can be removed, outputs and caches of any form, and names of modules."""
