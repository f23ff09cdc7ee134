"""How sentences name numbers, sites, levels and the next step."""
