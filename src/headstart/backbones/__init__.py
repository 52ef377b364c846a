"""Trunks that have already learned, and where their weights are."""
