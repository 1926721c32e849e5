"""Sinks that any modality can use."""
