# Two images of one project: `api` (no torch) and `worker` (torch for CPU).
#   docker build --target api    -t td3-api .
#   docker build --target worker -t td3-worker .
# A worker for NVIDIA cards: --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/td3
ENV PATH=/opt/td3/bin:$PATH
WORKDIR /src
COPY constraints.txt ./

FROM build AS build-worker-base
# Before the project's own layers: torch is large and rarely changes. Only torch comes from its
# index (--no-deps); constraints.txt says which version, and what it needs comes with the project.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps --index-url "${TORCH_INDEX_URL}" --constraint constraints.txt torch

FROM build AS build-api
COPY . .
RUN pip install --constraint constraints.txt '.[service]'

FROM build-worker-base AS build-worker
COPY . .
RUN pip install --constraint constraints.txt '.[service,engine]'

FROM ${PYTHON_IMAGE} AS runtime
# A number, so that Kubernetes can check that it is not root. Its home is the data folder, so the
# caches of libraries go there too.
RUN useradd --uid 10001 --home-dir /data --create-home --shell /usr/sbin/nologin td3
ENV PATH=/opt/td3/bin:$PATH PYTHONUNBUFFERED=1 TD3_DATA_DIR=/data
WORKDIR /data
VOLUME /data

FROM runtime AS api
COPY --from=build-api /opt/td3 /opt/td3
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["uvicorn", "app.main:app", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "5"]

FROM runtime AS worker
COPY --from=build-worker /opt/td3 /opt/td3
USER 10001
# SIGTERM: the engine writes a checkpoint, the job goes back to the queue.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=60s --timeout=20s --start-period=30s \
    CMD ["sh", "-c", "celery -A worker.celery_app inspect ping --timeout 10 --destination celery@$(hostname)"]
CMD ["celery", "-A", "worker.celery_app", "worker", "-P", "threads", "-c", "1", "--loglevel", "INFO"]
