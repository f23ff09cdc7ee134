"""Fitted states with their header, in one file; several as one."""
