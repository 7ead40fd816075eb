"""The tasks that a model is scored on, one module per kind (registry.py lists them). Their metrics depend on embeddings alone."""
