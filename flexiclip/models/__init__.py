"""The models in pure torch: PI-resize, the flexible image tower, the text towers and the two-tower model.

Nothing in this package reads training data or trains a model.
"""
