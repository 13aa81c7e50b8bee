"""``sslmed segment``: one annotated scan in, masks of others out."""
