# shellcheck shell=bash
# A throw-away cluster of Debian's PostgreSQL 15, with pgTAP, plpgsql_check and PgBouncer; and the browser. Sourced by .ci/run.
: "${work:?the directory of the run}"

readonly debian_version=15
readonly debian_bin="/usr/lib/postgresql/$debian_version/bin"

debian_postgresql_is_there() {
  [[ -x $debian_bin/initdb ]] && command -v pg_prove >/dev/null && [[ -x /usr/sbin/pgbouncer ]] &&
    ls /usr/share/postgresql/$debian_version/extension/{pgtap,plpgsql_check}.control >/dev/null 2>&1
}

# Everything that is there already is left alone; without anything missing apt-get is not called at all.
install_debian_packages() {
  local package missing=() as_root=()
  local wanted=("postgresql-$debian_version" "postgresql-$debian_version-pgtap" "postgresql-$debian_version-plpgsql-check"
    libtap-parser-sourcehandler-pgtap-perl pgbouncer prometheus chromium fonts-dejavu-core)
  ((EUID != 0)) || wanted+=(python3-venv) # root's Python may be one that nobody cannot run
  for package in "${wanted[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null) == ii* ]] || missing+=("$package")
  done
  if ((${#missing[@]} == 0)); then
    echo "all there"
    return
  fi
  if ((EUID != 0)); then
    if sudo -n true 2>/dev/null; then
      as_root=(sudo -n)
    elif [[ -n $without_debian ]]; then
      echo "missing and not installed, as CONVSYNC_CI_WITHOUT_DEBIAN is set: ${missing[*]}"
      return
    else
      echo "MISSING: ${missing[*]}" >&2
      echo "Run as root, allow sudo, or install them. CONVSYNC_CI_WITHOUT_DEBIAN=1 goes on without." >&2
      return 1
    fi
  fi
  echo "installing ${missing[*]}"
  local install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends)
  "${install[@]}" "${missing[@]}" || { "${as_root[@]}" apt-get update --quiet && "${install[@]}" "${missing[@]}"; }
}

# The account that runs the server: PostgreSQL refuses root.
as_postgres() {
  if ((EUID == 0)); then
    runuser -u postgres -- "$@"
  else
    "$@"
  fi
}

start_debian_postgresql() {
  local directory="$work/postgresql" memory password port
  # In memory where there is room: tests/scratch.py says why.
  if [[ -w /dev/shm ]] && (($(df --output=avail -B1 /dev/shm | tail -n 1) >= 4 << 30)); then
    memory="$(mktemp -d /dev/shm/convsync-ci.XXXXXX)"
    chmod 755 "$memory"
    ln -s "$memory" "$directory"
  else
    mkdir "$directory"
  fi
  port="$(.venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
  printf '%s\n' "$port" >"$directory/port"
  password="$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"
  (umask 077 && printf '%s\n' "$password" >"$directory/password")
  ((EUID != 0)) || chown -R postgres "$directory/"
  (cd / && as_postgres "$debian_bin/initdb" --pgdata "$directory/data" --username postgres --encoding UTF8 \
    --locale C.UTF-8 --auth scram-sha-256 --pwfile "$directory/password" --no-sync >/dev/null)
  cat >>"$directory/data/postgresql.conf" <<CONF
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = '$directory'
max_connections = 200
fsync = off
synchronous_commit = off
full_page_writes = off
track_functions = all
CONF
  (cd / && as_postgres "$debian_bin/pg_ctl" start --wait --silent --pgdata "$directory/data" --log "$directory/log") ||
    { cat "$directory/log" >&2 && return 1; }
  debian_psql postgres -Atc 'select version()'
}

stop_debian_postgresql() {
  if [[ -f $work/postgresql/data/postmaster.pid ]]; then
    (cd / && as_postgres "$debian_bin/pg_ctl" stop --mode immediate --silent --pgdata "$work/postgresql/data") || true
  fi
  [[ ! -L $work/postgresql ]] || rm -rf "$(readlink "$work/postgresql")"
}

debian_url() {
  printf 'postgresql://postgres:%s@127.0.0.1:%s/%s' \
    "$(<"$work/postgresql/password")" "$(<"$work/postgresql/port")" "$1"
}

# COMMAND with the environment in which psql finds the database.
debian_psql_environment() {
  local database="$1"
  shift
  PGHOST=127.0.0.1 PGPORT="$(<"$work/postgresql/port")" PGUSER=postgres PGDATABASE="$database" \
    PGPASSWORD="$(<"$work/postgresql/password")" "$@"
}

debian_psql() {
  local database="$1"
  shift
  debian_psql_environment "$database" psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 "$@"
}
