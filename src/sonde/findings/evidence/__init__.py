"""What the rules look at: gathered from the one pass, or tried, when the first rule asks."""
