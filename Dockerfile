# Image with FAMix and the tested versions of all packages, made by the same script as `make setup`.
#
#     docker build -t famix .
#     docker run --gpus all --shm-size 8g -v $PWD/data:/data -e DETECTRON2_DATASETS=/data -v $PWD/output:/work famix \
#         famix-train --config-file famix://GTA5/famix_RN50.yaml --num-gpus 1
#
# PyTorch's wheels bring their CUDA libraries, so the image runs on CPUs and GPUs. For a smaller image without CUDA:
#
#     docker build -t famix --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu .

ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG PIP_EXTRA_INDEX_URL
ENV PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL} PIP_NO_CACHE_DIR=1
RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/famix
COPY . .
RUN make setup

FROM ${BASE}
COPY --from=build /opt/famix /opt/famix
RUN useradd --create-home famix && mkdir /work && chown famix /work
ENV PATH=/opt/famix/.venv/bin:$PATH
USER famix
WORKDIR /work
CMD ["famix-train", "--help"]
