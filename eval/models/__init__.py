"""The models that the harness scores: what it asks of one (protocol.py), and a module for each kind that is not ours."""
