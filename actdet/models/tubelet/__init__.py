"""Tubelet queries: each slot of the decoder follows one actor through all frames of a clip."""
