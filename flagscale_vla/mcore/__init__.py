"""The only room that knows Megatron-core, Transformer Engine and CUDA."""

import warnings

# On import Megatron-core warns of each optional package that is not there; which layers are used is ours to choose.
warnings.filterwarnings("ignore", module=r"megatron\.")
warnings.filterwarnings("ignore", message=r".*(reduce_scatter_tensor|all_gather_into_tensor).*", category=FutureWarning)
warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
