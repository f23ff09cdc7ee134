"""What tables of scores are worth, held against what is known of their rows."""
