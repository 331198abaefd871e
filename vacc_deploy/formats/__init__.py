"""Codes and scales: the int8 rule, and how each layout stores them. Pure."""
