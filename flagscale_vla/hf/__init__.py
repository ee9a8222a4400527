"""Weights in and out of Hugging Face form: the name table."""
