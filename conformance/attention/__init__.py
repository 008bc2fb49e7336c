"""Efficient full attention."""
