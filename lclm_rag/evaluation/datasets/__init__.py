"""Sets of questions with known answers, made from a seed or read from files."""
