"""Experiments that count instead of timing: no model, no download, no particular machine, one module each."""
