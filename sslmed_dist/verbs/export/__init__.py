"""``sslmed export``: the encoder for other programs, in several formats."""
