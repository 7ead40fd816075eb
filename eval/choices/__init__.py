"""What a curve over lengths is good for: the length to deploy, and a short length that a long one corrects."""
