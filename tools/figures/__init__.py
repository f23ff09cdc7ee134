"""Tables about drawn worlds; each file holds a table, and they share a runner."""
