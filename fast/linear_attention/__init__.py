"""Linear attention and linear recurrent networks."""
