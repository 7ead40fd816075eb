"""Suites in YAML, what they may say (task.py, dataset.py), and how one is read (load.py)."""
