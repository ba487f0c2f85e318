"""The model: pure functions of parameters and arrays, and its arithmetic."""
