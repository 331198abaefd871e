"""The static checks of directories and compile files: every finding in one report."""
