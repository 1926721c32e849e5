"""Scores for generated samples: plain functions of arrays, no model, no logger, no IO.

`fidelity` and `memorisation` need only numpy, so nothing is re-exported here: importing them must
not pull in torch (`extractor`) or jinja2 and Pillow (`report`).

Every score takes `real` before `fake`. A score means little alone: compute it once more with a
real holdout in place of the generated samples and show the two side by side.
"""
