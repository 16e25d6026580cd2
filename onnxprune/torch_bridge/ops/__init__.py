"""What operators do, in torch: one row each, in sections."""
