"""flexiclip."""
