"""Contrastive training: the loop (loop.py), its one step (step.py), and the engines that run it (engine.py, zero.py)."""
