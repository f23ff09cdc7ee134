"""Refusals of sonde, counted, drawn and provoked, to read whether their reasons are true."""
