# The machine that .ci/run expects: Python 3.11, make, and what MuJoCo needs to draw without a screen.
#   docker build --file docker/cpu.Dockerfile --tag flagscale_vla:cpu .
#   docker run --rm flagscale_vla:cpu make test
# With --build-arg PIP_EXTRA_INDEX_URL=INDEX, where INDEX is PyTorch's index of CPU builds, no CUDA is installed.
FROM python:3.11.13-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make libegl1 libgl1-mesa-dri libosmesa6 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /flagscale_vla
ARG PIP_EXTRA_INDEX_URL
# The environment depends on pyproject.toml alone, so a change of code does not install it again.
COPY pyproject.toml Makefile README.md ./
RUN mkdir flagscale_vla && touch flagscale_vla/__init__.py && make .venv/ready
COPY . .
ENV PATH=/flagscale_vla/.venv/bin:$PATH
CMD ["make", "train"]
