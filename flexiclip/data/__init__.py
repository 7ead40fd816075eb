"""From tar shards to batches.

plan says which samples a step sees; shards, index and samples read them; images, dataset, loader and sequential make batches;
sources builds real data sets; tokenizers turns captions into tokens; check finds what is broken.
"""
