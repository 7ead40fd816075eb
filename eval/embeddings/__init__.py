"""Computes the embeddings of images and texts (embed.py) and keeps them on disk (store.py)."""
