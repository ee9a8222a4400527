"""Pretraining of vision-language-action models on Megatron-core."""
