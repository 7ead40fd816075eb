"""The recipes. They are installed as flexiclip_recipes, so that their names work after pip install."""
