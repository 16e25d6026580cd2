"""The recipe of thresholds."""
