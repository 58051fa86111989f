# Sourced by realprograms.sh: PostgreSQL with its data in the mount, its processes killed, and the node that leads.
# What pgbench was told is committed must be there afterwards, and the books must balance.

pg_user=postgres
id "$pg_user" >/dev/null 2>&1 || pg_user=nobody
pg_clients=4
pg_seconds=$((${short:+1} + 0 ? 4 : 15))

as_pg() { runuser -u "$pg_user" -- "$@"; }
pg_start() { (cd / && as_pg pg_ctl -s -w -t 120 -D "$work/data" -l "$pg_run/log" -o "-k $pg_run -c listen_addresses=" start) || fail "PostgreSQL does not start: $(tail -n 5 "$pg_run/log")"; }
sql() { (cd / && as_pg psql -XAtq -h "$pg_run" -d postgres -c "$1"); }

# pg_kill ends every process of the server at once, as a loss of power does.
pg_kill() {
  local pid children
  pid=$(head -n 1 "$work/data/postmaster.pid" 2>/dev/null) || return 0
  children=$(pgrep -P "$pid" | tr '\n' ' ')
  # shellcheck disable=SC2086 # several ids
  kill -KILL "$pid" $children 2>/dev/null || true
  while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
}

# inmount_hook leaves no process behind, which would keep the mount busy.
inmount_hook() {
  [[ -n ${pg_run:-} && -d $pg_run ]] || return 0
  pg_kill
  rm -rf "$pg_run"
}

# pg_load runs pgbench, which writes a line for each transaction that it was told is committed.
pg_load() { (cd "$pg_run/acks" && as_pg pgbench -h "$pg_run" -n -c "$pg_clients" -j 2 -T "$pg_seconds" -l --log-prefix="$1" postgres >"$pg_run/$1.out" 2>&1); }

# pg_check counts the transactions that are there and lets the books balance.
pg_check() {
  local told there sums
  told=$(cat "$pg_run"/acks/* | wc -l)
  there=$(sql 'select count(*) from pgbench_history')
  ((there >= told && there <= told + pg_lost)) || fail "$1: $told transactions were committed, $there are there"
  sums=$(sql 'select (select sum(abalance) from pgbench_accounts) = s and (select sum(bbalance) from pgbench_branches) = s and (select sum(tbalance) from pgbench_tellers) = s from (select coalesce(sum(delta), 0) s from pgbench_history) h')
  [[ $sums == t ]] || fail "$1: the books do not balance"
  echo "postgres: $1: $told transactions, none lost"
}

postgres_run() {
  local bench leader
  pg_run=$(mktemp -d /tmp/cfs-pg-XXXXXX) # sockets have short paths
  mkdir "$pg_run/acks" "$work/data"
  chown -R "$pg_user" "$pg_run" "$work/data"
  chmod 700 "$work/data"
  (cd / && as_pg initdb -D "$work/data" >"$pg_run/initdb" 2>&1) || fail "initdb: $(tail -n 3 "$pg_run/initdb")"
  pg_lost=$pg_clients
  pg_start
  (cd / && as_pg pgbench -q -h "$pg_run" -i -s 2 postgres >"$pg_run/init" 2>&1) || fail "pgbench -i"

  pg_load killed &
  bench=$!
  sleep "$((pg_seconds / 2))"
  pg_kill
  wait "$bench" || true # it has lost its connections
  pg_start
  pg_check "all its processes killed"

  if [[ -z $short ]]; then
    pg_load leader &
    bench=$!
    sleep 5
    leader=$(inmount_leader) || fail "nobody leads"
    "$cfs" demo kill --dir "$base/c" --node "$leader"
    wait "$bench" || fail "pgbench did not survive the death of node $leader: $(tail -n 3 "$pg_run/leader.out")"
    "$cfs" demo restart --dir "$base/c" --node "$leader"
    pg_check "the leading node killed"
    pg_kill # what is there is on the mount, not in PostgreSQL's memory
    "$cfs" demo remount --dir "$base/c"
    pg_start
    pg_check "and everything restarted"
  fi
  (cd / && as_pg pg_ctl -s -w -D "$work/data" -m fast stop)
  rm -rf "$pg_run"
}
