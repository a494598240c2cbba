"""Question → answer: read the store, build prompts, decode, and expand passages."""
