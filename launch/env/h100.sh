# shellcheck shell=bash
# Hosts with eight H100s. Not yet tried on such a cluster; what its network needs (NCCL_SOCKET_IFNAME, NCCL_IB_HCA)
# belongs here.

# Megatron-core overlaps tensor-parallel communication with computation only where kernels start in order.
export CUDA_DEVICE_MAX_CONNECTIONS=1
# Packed rows differ in their numbers of patches; growing segments keep that from fragmenting memory.
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
