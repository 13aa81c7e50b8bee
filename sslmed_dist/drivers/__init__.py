"""Drivers decide where ``fit`` runs and which samples it sees: this process, Ray workers, hospitals in Flower."""
