"""Measures how far a detector can be trusted: figures over annotated clips, and the report that shows them."""
