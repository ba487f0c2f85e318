"""Text from parameters."""
