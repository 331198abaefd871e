"""The whole chain on the small model that the package carries."""
