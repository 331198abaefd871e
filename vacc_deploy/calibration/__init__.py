"""Calibration text: published data files in, rows of token ids out.

``sources`` reads documents, ``conversations`` writes them as a model does, ``parts`` says which of
them judge, ``rows`` turns them into ids. Nothing is downloaded and nothing is
unpacked to disk.
"""
