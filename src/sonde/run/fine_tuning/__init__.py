"""Fine-tuning with losses at sites, beside the same training without them."""
