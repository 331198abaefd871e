"""The vendor's compile file: its keys, its rules, the committed set, the cards."""
