# SPDX-License-Identifier: Apache-2.0
# The export, and builds for other GPUs, on a workstation without a GPU: torch for the CPU, transformers, onnx, TensorRT for RTX.
# docker build -f docker/exporter.Dockerfile -t secateur:exporter .

ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY LICENSE README.md constraints.txt pyproject.toml setup.cfg ./
COPY secateur secateur
RUN PIP_CONSTRAINT=constraints.txt pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM ${PYTHON_IMAGE} AS exporter
COPY --from=wheel /src/constraints.txt /wheel/*.whl /opt/wheel/

# Install torch first, from PyTorch's own index: torch from the package index depends on several GB of CUDA.
# tensorrt-rtx-cu13 is only published as source; its compiled parts are wheels.
RUN pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu \
        --constraint /opt/wheel/constraints.txt torch \
    && set -- /opt/wheel/*.whl \
    && pip install --no-cache-dir --only-binary :all: --no-binary tensorrt-rtx-cu13 \
        --constraint /opt/wheel/constraints.txt "${1}[export,rtx]" \
    && useradd --uid 10001 --create-home secateur \
    && install --directory --owner secateur --group secateur /work/build

# With --user, the user has no name and no home directory in the container, and torch needs both.
ENV HOME=/tmp \
    USER=secateur
VOLUME ["/work/build"]
WORKDIR /work
USER 10001
HEALTHCHECK NONE
ENTRYPOINT ["secateur"]
CMD ["export", "--help"]
