"""Malicious, malformed, damaged and unusual files: a function of a few lines for each."""
