"""Contrastive training: the loop (trainer.py), its one step (step.py), and the engines that run it (engine.py, deepspeed.py)."""
