"""Builders of real data sets. Each writes webdataset shards or images, a license note and a description into a folder."""
