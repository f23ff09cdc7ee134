"""Engines that run language models in place of transformers; each imports its package alone.

An engine runs the tokens; everything else (sites, rows, files, detectors) is as with transformers.
"""
