"""Paired statistics and tables over a store of runs; pandas in and out, no model needed."""
