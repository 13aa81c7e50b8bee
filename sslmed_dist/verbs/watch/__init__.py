"""``sslmed watch``: how a run is getting on, from its folder alone; nothing is written there."""
