"""Embeddings of images at every length and of texts, computed once and shared over the ranks."""
