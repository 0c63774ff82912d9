"""What remembers: the store of models and measurements, the machine they came from, workers."""
