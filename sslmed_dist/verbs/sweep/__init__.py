"""``sslmed sweep``: one recipe with several values of some keys, and a table of what each is worth."""
