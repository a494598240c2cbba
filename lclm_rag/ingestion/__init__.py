"""Compress a corpus and write it to a store, in this process or on a Ray cluster."""
