"""What trains the towers: plain torch (engine.py) and DeepSpeed (zero.py) behind the same few methods, and their optimisers."""
