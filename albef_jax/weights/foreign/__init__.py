"""Other people's weights: their names, layouts and files."""
