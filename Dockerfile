# The image of Outlast: the command line and everything a training needs, without compilers,
# tests or caches. deploy/README.md says how it is run.
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/outlast
ENV PATH=/opt/outlast/bin:$PATH
WORKDIR /src

# Dependencies first: this layer, nearly all of the image, changes only with these two files.
COPY pyproject.toml constraints.txt ./
RUN python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb")); \
print(*project["build-system"]["requires"], *project["project"]["dependencies"], \
*(package for extra in ("plot", "s3", "gcs", "azure") \
for package in project["project"]["optional-dependencies"][extra]), sep="\n")' \
> /tmp/requirements.txt \
 && pip install --no-cache-dir --requirement /tmp/requirements.txt --constraint constraints.txt

COPY README.md LICENSE ./
COPY checkpoints checkpoints
COPY service service
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
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
