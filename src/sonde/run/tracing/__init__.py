"""Two texts of one model, and which states carry what tells their answers apart."""
