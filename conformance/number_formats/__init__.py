"""Number formats and byte layouts."""
