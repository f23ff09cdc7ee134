"""Findings of a scan.

``evidence`` is what the rules look at, ``codes`` has a file for each rule, ``words`` is how its
sentences name things; the files beside these read the data, judge causes and write the document.
"""
