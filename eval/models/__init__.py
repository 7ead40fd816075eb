"""The models that the harness scores. protocol.py says what a model must have, and sources.py opens the one that a user names."""
