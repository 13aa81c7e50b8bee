"""``sslmed analyse``: why a run is as it is, one module for each analysis."""
