"""Finds actions in videos of any length, and writes what it finds to files."""
