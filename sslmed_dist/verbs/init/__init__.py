"""``sslmed init``: a look at someone's own data, and a recipe that trains on it as it is."""
