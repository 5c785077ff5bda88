#!/bin/sh
# convsync for the people of a machine on which deploy/convsync.service runs: with the service's settings and as its user,
# from whatever directory. Install it as /usr/local/bin/convsync; root runs it, or the user convsync.

cd /etc/convsync || exit 2
export CONVSYNC_DATA_DIR=/var/lib/convsync
if [ "$(id -un)" = convsync ]; then
  exec /opt/convsync/bin/convsync "$@"
fi
exec runuser -u convsync -- /opt/convsync/bin/convsync "$@"
