# NVIDIA's PyTorch image: CUDA, torch, Transformer Engine, FlashAttention and DALI, built for one another.
#   docker build --file docker/gpu.Dockerfile --build-arg BASE=IMAGE --tag flagscale_vla:gpu .
# IMAGE is NVIDIA's PyTorch container in its registry's full name, of 26.02 or near it.
#   docker run --rm --gpus all --ipc host flagscale_vla:gpu make test MARKS='not sim_full' JOBS=1
ARG BASE
FROM ${BASE}

RUN apt-get update \
    && apt-get install --yes --no-install-recommends libegl1 libgl1-mesa-dri libosmesa6 python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /flagscale_vla
# The image's own torch and its kin are kept, so the extra `gpu` is not installed; the rest goes beside them.
ENV VENV_FLAGS=--system-site-packages
COPY pyproject.toml Makefile README.md ./
RUN mkdir flagscale_vla && touch flagscale_vla/__init__.py && make .venv/ready
COPY . .
ENV PATH=/flagscale_vla/.venv/bin:$PATH
CMD ["make", "test", "MARKS=not sim_full", "JOBS=1"]
