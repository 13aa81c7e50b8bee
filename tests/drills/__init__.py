"""Drills: a federation to which the things happen that happen in hospitals. What a person sees is the table in
docs/hospitals.md: ``SSLMED_DRILLS=FILE pytest tests/drills tests/drivers/test_tls_federation.py`` writes the lines,
``python -m tests.drills.table FILE`` makes the table of them."""
