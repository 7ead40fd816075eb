"""What a model is scored on: one module a task, functions of embeddings alone (registry.py lists them)."""
