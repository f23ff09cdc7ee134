"""Rows of the data: copies, outliers, doubtful labels, weak groups, shortcuts."""
