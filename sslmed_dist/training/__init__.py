"""From a configuration to a trained method: what every driver does."""
