"""The Flower app at a site: it answers the server's messages, all it does is in ``sslmed_dist.federation``."""
