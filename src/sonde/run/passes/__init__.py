"""One pass over the units of a plan: done in ranges, committed to a ledger, each counted once."""
