"""Scores for generated samples: plain functions of arrays, no model, no logger, no IO.

Every score takes `real` before `fake`. A score means little alone: compute it again with a real holdout in place of the
generated samples, and show both.
"""
