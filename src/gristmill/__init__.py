"""gristmill: raw text in, a small language model out."""
