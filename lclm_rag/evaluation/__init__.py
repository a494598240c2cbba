"""Evaluation: question sets, contexts, baselines, scores and reports."""
