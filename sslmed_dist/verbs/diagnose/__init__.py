"""``sslmed diagnose``: from examinations to probabilities, and what they are worth."""
