# craftbox server and client in one image; docker-compose.yml says which of them runs.
FROM python:3.11-slim
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt ".[server,client,postgres]" \
    && useradd --create-home craft \
    && install -d -o craft /data
USER craft
ENV CRAFT_DATA_DIR=/data
EXPOSE 8000
CMD ["craft-server", "serve", "--host", "0.0.0.0", "--port", "8000"]
