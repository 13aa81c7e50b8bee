"""Only where ``fit`` runs: this process, Ray's workers, Flower's programs."""
