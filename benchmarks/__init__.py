"""Benchmarks: one script per claim, and what they share (harness, rivals)."""
