"""What the notebooks measure on a store's models, the published numbers, and both in one table."""
