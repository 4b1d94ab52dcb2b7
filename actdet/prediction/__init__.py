"""Finding actions in videos of any length."""
