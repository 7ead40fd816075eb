"""What a run trains towards: an objective says what the towers compute of a micro-batch, and what loss their outputs have.

The step (train/step.py), the engines, the order of the data, checkpoints and metrics are the same for each of them.
"""
