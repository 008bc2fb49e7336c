"""Serving: what an engine keeps, shares and schedules between requests."""
