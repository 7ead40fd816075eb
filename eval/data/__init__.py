"""The images, captions and labels of a data set, read and decoded once."""
