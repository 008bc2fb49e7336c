"""State-space models: linear recurrences that carry a state through time."""
