"""Test-time training: memories that learn while they are asked."""
