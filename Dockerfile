# Two images, of the same build: `server` (docker build --target server .) hosts a model, `client`
# tunes over HTTP and has no torch. Neither has a compiler, pip's cache, tests or root.
FROM python:3.11-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY server server
COPY client client
COPY shared shared
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim AS server-packages
# For a GPU leave this empty: PyPI's torch is built for CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt /
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/craftbox \
    && /opt/craftbox/bin/pip install --no-cache-dir --constraint /constraints.txt \
       ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$(ls /wheels/*.whl)[server,postgres,redis]"

FROM python:3.11-slim AS client-packages
COPY constraints.txt /
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/craftbox \
    && /opt/craftbox/bin/pip install --no-cache-dir --constraint /constraints.txt \
       "$(ls /wheels/*.whl)[client]"

FROM python:3.11-slim AS base
ENV PATH=/opt/craftbox/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Volumes take the owner of the folder that they are mounted on.
RUN useradd --uid 10001 --create-home craft \
    && install -d -o craft -g craft /data /keys /keys/client /keys/metrics /work
WORKDIR /work
USER 10001:10001

FROM base AS client
COPY --from=client-packages /opt/craftbox /opt/craftbox
COPY examples/quickstart.py examples/tune_once.py /examples/
CMD ["craft", "--help"]

FROM base AS server
COPY --from=server-packages /opt/craftbox /opt/craftbox
ENV CRAFT_DATA_DIR=/data
EXPOSE 8000
CMD ["craft-server", "serve", "--host", "0.0.0.0", "--port", "8000"]
