# The image of Outlast: the command line and everything a training needs, without compilers,
# tests or caches. deploy/README.md says how it is built and run.

# The Python image, by digest, because a tag is no version. It is the index of all architectures, of
# 19 September 2026 with Python 3.11.16. `make image` takes another one, also by digest only.
ARG BASE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b
FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/outlast
ENV PATH=/opt/outlast/bin:$PATH
WORKDIR /src

# Dependencies first: this layer, nearly all of the image, changes only with this file. Only what its
# hashes name is installed, and no code runs to build it.
COPY requirements-image.txt ./
RUN pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: \
    --requirement requirements-image.txt

COPY pyproject.toml README.md LICENSE ./
COPY checkpoints checkpoints
COPY service service
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

FROM ${BASE}
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin outlast \
 && install --directory --owner outlast --group outlast /jobs /work
COPY --from=build /opt/outlast /opt/outlast
ENV PATH=/opt/outlast/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OUTLAST_ROOT=/jobs \
    MPLCONFIGDIR=/tmp/matplotlib
USER 10001:10001
VOLUME ["/jobs"]
WORKDIR /work
ENTRYPOINT ["outlast"]
CMD ["--help"]
