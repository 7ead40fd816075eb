"""Pure torch: PI-resize, the flexible image tower, the text towers and the two-tower model. No data, no training."""
