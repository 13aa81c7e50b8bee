"""The Flower app at a site: it answers the server's messages. What a site does is in ``sslmed_dist.federation``."""
