"""One pass over the units of a plan: worked on in ranges, committed to a ledger, never twice."""
