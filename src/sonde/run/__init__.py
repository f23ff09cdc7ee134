"""What people do with hidden states, from reading them to acting on them, in the order of imports.

From the bottom: ``instruments`` and ``workers``; ``reading`` and ``passes``; ``bundles`` that hold
fitted states; ``fitting``; ``scoring``; ``calibrating``; then what is done with all these:
``evaluating``, ``watching``, ``comparing``, ``training``; and ``verifying``.
"""
