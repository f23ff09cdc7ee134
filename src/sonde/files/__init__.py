"""How anything gets safely on disk: the state file, durable writes, locks, seals and hashes."""
