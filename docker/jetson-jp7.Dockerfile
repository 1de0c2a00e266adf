# SPDX-License-Identifier: Apache-2.0
# Jetson Thor with JetPack 7, Orin with JetPack 7.2: TensorRT 10.16, CUDA 13, Python 3.12.
# docker build -f docker/jetson-jp7.Dockerfile -t secateur:jetson-jp7 .

ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
ARG BASE_IMAGE=nvcr.io/nvidia/tensorrt:26.05-py3

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY LICENSE README.md constraints.txt pyproject.toml setup.cfg ./
COPY secateur secateur
RUN PIP_CONSTRAINT=constraints.txt pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM ${BASE_IMAGE} AS device
COPY --from=wheel /src/constraints.txt /wheel/*.whl /opt/wheel/

ENV PATH=/opt/secateur/bin:${PATH}:/usr/src/tensorrt/bin \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The environment uses pip and the TensorRT bindings of the base image; the rest comes from the index, pinned.
# cuda-python must not be newer than the CUDA of JetPack 7.0.
RUN python3 -m venv --without-pip --system-site-packages /opt/secateur \
    && python -m pip install --no-cache-dir --ignore-installed --only-binary :all: \
        --constraint /opt/wheel/constraints.txt /opt/wheel/*.whl \
    && python -m pip install --no-cache-dir --ignore-installed --only-binary :all: \
        cuda-bindings==13.0.3 cuda-pathfinder==1.9.0 \
    && python -c "import importlib.util as u; assert u.find_spec('tensorrt'), 'BASE_IMAGE has no TensorRT bindings'" \
    && useradd --uid 10001 --groups video --create-home secateur \
    && install --directory --owner secateur --group secateur /bundle/engines

# Plans are valid for one device and one TensorRT version, so they are built at the first start, not in the image.
VOLUME ["/bundle/engines"]
WORKDIR /home/secateur
USER 10001
HEALTHCHECK NONE
ENTRYPOINT ["secateur"]
CMD ["--help"]
