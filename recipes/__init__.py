"""Recipes: whole walks from data to card. Run them from a checkout, `python -m recipes.<name>`."""
