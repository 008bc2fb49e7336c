"""twofold: every algorithm of efficient LLM inference, once to read (`twofold.spec`) and once to run (`twofold.fast`)."""
