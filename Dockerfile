# convsync without the embedded PostgreSQL: CONVSYNC_DATABASE_URL names the database (compose.yaml starts one).
#
#   docker build -t convsync .
#   docker run --env-file .env -p 8080:8080 convsync

# The tag states Python's minor version and Debian's release; its patches come with each build.
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
# Without a pip of its own: nobody installs anything into the image that runs.
RUN python -m venv --without-pip /opt/convsync
# What changes seldom comes first: with the same pyproject.toml the dependencies are a cached layer.
COPY pyproject.toml README.md LICENSE ./
# With the extra `sentry`: nobody can add it to the image later.
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*p['dependencies'], *p['optional-dependencies']['sentry'], sep='\n')" \
      > requirements.txt \
 && pip --python /opt/convsync/bin/python install --no-cache-dir --requirement requirements.txt
COPY service service
COPY sql sql
COPY migrations migrations
RUN pip wheel --no-cache-dir --no-deps --wheel-dir dist . \
 && pip --python /opt/convsync/bin/python install --no-cache-dir --no-deps dist/convsync-*.whl

FROM python:3.11-slim-bookworm
# psql, for `convsync psql` and its recipes: what `status`, `doctor` and the runbooks tell an operator to run.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends postgresql-client \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /var/lib/convsync convsync \
 && install -d -o convsync -g convsync -m 700 /var/lib/convsync
COPY --from=build /opt/convsync /opt/convsync
ENV PATH=/opt/convsync/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CONVSYNC_DATA_DIR=/var/lib/convsync \
    CONVSYNC_LOG_FORMAT=json
# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
WORKDIR /var/lib/convsync
VOLUME /var/lib/convsync
EXPOSE 8080
# Drains: it ends in less than ten seconds, which is what `docker stop` waits.
STOPSIGNAL SIGTERM
# Is the process up? Whether it may get traffic is asked at /readyz. No proxy of the environment gets in between.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('CONVSYNC_PORT') or 8080), timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["convsync"]
CMD ["serve", "--host", "0.0.0.0"]
