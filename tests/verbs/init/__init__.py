"""Tests of ``sslmed init``."""
