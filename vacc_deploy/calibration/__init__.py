"""Calibration text: published data files in, rows of token ids out.

``sources`` reads documents, ``rows`` turns them into ids. Nothing is downloaded and nothing is
unpacked to disk.
"""
