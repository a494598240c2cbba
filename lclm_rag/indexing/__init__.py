"""The passage index of a knowledge base: kept at a version of its store, published and verified."""
