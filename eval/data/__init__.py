"""Reads the images, captions and labels of a data set from shards (shards.py), or from folders and tables (files.py)."""
