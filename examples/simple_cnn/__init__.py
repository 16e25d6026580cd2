"""The recipe of magnitudes."""
