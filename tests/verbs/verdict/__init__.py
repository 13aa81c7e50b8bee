"""Tests of ``sslmed verdict``."""
