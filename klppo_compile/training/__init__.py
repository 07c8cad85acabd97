"""Training on Gymnasium environments: collection, updates, and the run folder."""
