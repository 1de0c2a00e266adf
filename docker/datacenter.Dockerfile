# SPDX-License-Identifier: Apache-2.0
# Servers and workstations, x86 or SBSA: TensorRT 11.1 and TensorRT for RTX, CUDA 13, Python 3.12.
# docker build -f docker/datacenter.Dockerfile -t secateur:datacenter .

ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
ARG BASE_IMAGE=nvcr.io/nvidia/tensorrt:26.07-py3

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
# cuda-python must not be newer than the CUDA of any driver for CUDA 13.
# tensorrt-rtx-cu13 is only published as source; its compiled parts are wheels.
RUN python3 -m venv --without-pip --system-site-packages /opt/secateur \
    && set -- /opt/wheel/*.whl \
    && python -m pip install --no-cache-dir --ignore-installed --only-binary :all: --no-binary tensorrt-rtx-cu13 \
        --constraint /opt/wheel/constraints.txt "${1}[rtx]" \
    && python -m pip install --no-cache-dir --ignore-installed --only-binary :all: \
        cuda-bindings==13.0.3 cuda-pathfinder==1.9.0 \
    && python -c "import importlib.util as u; assert u.find_spec('tensorrt'), 'BASE_IMAGE has no TensorRT bindings'" \
    && useradd --uid 10001 --create-home secateur \
    && install --directory --owner secateur --group secateur /bundle/engines

# Plans of TensorRT are valid for one device and one version, so they are built at the first start, not in the image.
VOLUME ["/bundle/engines"]
WORKDIR /home/secateur
USER 10001
HEALTHCHECK NONE
ENTRYPOINT ["secateur"]
CMD ["--help"]
