"""Jobs on hidden states, from reading them to acting on them; folders are in import order.

From the bottom: ``instruments``; ``reading``, and ``passes`` with their workers; ``fitting``, with
the bundles that hold fitted states; ``scoring``, with calibration and evaluation; then what is done
with all these: ``watching``, ``training``, ``changing``, ``explaining``, ``coding`` and
``compressing``; and ``comparing``, which also verifies runs.
"""
