"""Builders of real data sets: each writes webdataset shards, a licence note and dataset.json into a folder."""
