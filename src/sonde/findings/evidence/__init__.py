"""What the rules read: collected in one pass, or computed when the first rule asks for it."""
