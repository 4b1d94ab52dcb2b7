"""Video files to frames and back. Knows nothing of annotations."""
