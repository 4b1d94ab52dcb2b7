"""STMA: tubelets of a few neighboring frames, found by their centers."""
