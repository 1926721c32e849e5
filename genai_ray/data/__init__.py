"""Real data as encoded arrays, and the codec that says how to read them. One file per modality."""
