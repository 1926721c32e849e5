"""genai_ray: from real data to published synthetic data, with one spec."""

__version__ = "0.1.0"
