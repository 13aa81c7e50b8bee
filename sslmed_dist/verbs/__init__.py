"""What a person asks for, one module a verb of ``sslmed``."""
