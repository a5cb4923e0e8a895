"""Ratios of our times to a floor that any implementation must pay, beside other libraries'."""
