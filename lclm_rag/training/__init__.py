"""Make an LCLM: a start from any decoder, objectives, packed batches, a loop that resumes."""
