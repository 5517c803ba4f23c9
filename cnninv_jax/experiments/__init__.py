"""Experiments: the papers' figures and tables, and the report on filters that someone brings."""
