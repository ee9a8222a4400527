"""The only room that knows Megatron-core, Transformer Engine and CUDA."""
