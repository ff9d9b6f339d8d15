FROM debian-python

ARG VERSION
ARG APP_HOME=/var/lib/service

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

RUN set -eux; \
    groupadd --system --gid 4242 service; \
    useradd --system --uid 4242 --gid service --home-dir "$APP_HOME" service; \
    \
    # The home is made by hand, as useradd makes none for a system user.
    mkdir -p "$APP_HOME" && chown service:service "$APP_HOME"

ADD conf/*.conf /etc/service/
COPY --chown=service:service ["with space.txt", "$APP_HOME/"]

WORKDIR $APP_HOME
USER service:service
RUN echo "${VERSION:-none}" | tee version && id -un >> version && pwd >> version
ENTRYPOINT cat version /etc/service/*.conf "with space.txt"
