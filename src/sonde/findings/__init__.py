"""What a scan says: one code, one file, with its rule, its sentence and the fault that shows it."""
