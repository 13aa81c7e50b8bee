"""``sslmed verdict``: is a run learning? Told without labels, and in words."""
