"""The checkpoint that the user means: a directory, a repository of the hub, a copy in a cache."""
