"""What a job will cost: small runs of the job itself, extrapolated to all of its data."""
