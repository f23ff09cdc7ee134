"""Time and memory of sonde against plain forwards and against other libraries.

``python -m benchmarks`` prints one row for each budget. Ratios are taken in one process on one
thread, arms interleaved; an arm that repeats the base says how large the noise is.
"""
