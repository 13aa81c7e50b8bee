"""Self-supervised image encoders: one trainer for a laptop, a Ray cluster and hospitals joined by Flower."""

__version__ = "0.1.0"
