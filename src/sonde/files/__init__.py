"""Safe files on disk: the state file, durable writes, locks, checksums and hashes."""
