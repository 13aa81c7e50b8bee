"""One-shot segmentation: the protocol, its evaluator, and what it measures."""
