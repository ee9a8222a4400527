# shellcheck shell=bash
# Hosts without a GPU, or whose GPUs are to be left alone.
export CUDA_VISIBLE_DEVICES=
