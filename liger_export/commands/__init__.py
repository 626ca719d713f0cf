"""The commands of ``liger-export``, one module for each group, and what they share at the terminal."""
