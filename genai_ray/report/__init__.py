"""The quality report: one page for every modality, its charts and its pictures."""
