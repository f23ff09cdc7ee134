"""The shared sketches: mergeable statistics that many methods read."""
