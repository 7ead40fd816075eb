"""The suites of flexiclip (*.yaml), the keys of a suite (dataset.py and task.py), and the code that reads one (load.py)."""
