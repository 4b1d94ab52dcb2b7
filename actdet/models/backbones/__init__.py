"""Networks that turn a clip into features."""
