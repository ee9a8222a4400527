"""A trained model in use: observations in, chunks of actions out."""
