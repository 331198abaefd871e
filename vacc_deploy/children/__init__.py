"""Processes of limited memory and time, in which the work on a stranger's file is done."""
