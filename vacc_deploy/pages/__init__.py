"""The page that ``--report`` writes: one HTML file without scripts, links or network."""
