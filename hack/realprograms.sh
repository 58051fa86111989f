#!/usr/bin/env bash
# Lets programs that people use work inside a mount and holds what they did against what it must be.
#
#   hack/realprograms.sh                      all of them, in a mount of a cluster that it starts
#   hack/realprograms.sh STEP...              some of them: git gobuild sqlite tar rsync dpkg dbench postgres
#   hack/realprograms.sh --in DIR STEP...     in a directory that is there, shorter; what is not installed is left out
set -euo pipefail
source "$(dirname "$0")/inmount.sh"
steps=(git gobuild sqlite tar rsync dpkg dbench postgres)
short=
mnt=
if [[ ${1:-} == --in ]]; then
  short=1 mnt=$(cd "$2" && pwd)
  shift 2
fi
(($#)) && steps=("$@")
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null HOME=/nonexistent LC_ALL=C

fail() { echo "FAIL $step: $*" >&2; exit 1; }
# need COMMAND...: what the step cannot do without.
need() {
  local c
  for c; do
    command -v "$c" >/dev/null && continue
    [[ -z $short ]] || { echo "skip $step: no $c"; return 1; }
    fail "no $c: make programs installs it"
  done
}

git_step() {
  need git || return 0
  local as=(-c user.name=t -c user.email=t@example.com -c init.defaultBranch=main -c safe.directory='*')
  mkdir "$work/source" "$work/source/a"
  cp -r "$root"/{cfs,fuse,docs} "$work/source/a"
  git "${as[@]}" -C "$work/source" init -q
  git "${as[@]}" -C "$work/source" add .
  git "${as[@]}" -C "$work/source" commit -qm one
  git "${as[@]}" -C "$work/source" mv a b
  git "${as[@]}" -C "$work/source" commit -qm two
  git "${as[@]}" clone -q --no-local "$work/source" "$work/clone"
  git "${as[@]}" clone -q --local "$work/clone" "$work/linked"
  git "${as[@]}" -C "$work/clone" gc -q
  local repo
  for repo in source clone linked; do
    git "${as[@]}" -C "$work/$repo" fsck --full --strict --no-progress || fail "git fsck of $repo"
    [[ -z $(git "${as[@]}" -C "$work/$repo" status --porcelain) ]] || fail "git status of $repo is not clean"
  done
  diff -r "$root/fuse" "$work/linked/b/fuse" >/dev/null || fail "the second clone differs"
}

gobuild_step() {
  need go || return 0
  mkdir -p "$work/m" "$work/tmp"
  printf 'module example.com/m\n\ngo 1.21\n' >"$work/m/go.mod"
  printf 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("built") }\n' >"$work/m/main.go"
  export GOCACHE=$work/cache GOTMPDIR=$work/tmp GOFLAGS=-modcacherw CGO_ENABLED=0
  (cd "$work/m" && go build -o "$work/m/prog" . && go vet . && go build -o "$work/m/prog2" .)
  [[ $("$work/m/prog") == built ]] || fail "the program says something else"
  cmp "$work/m/prog" "$work/m/prog2" || fail "two builds differ"
  [[ -n $short ]] || {
    # The modules stay where they are: what is built here is this repository.
    (cd "$root" && HOME=/root go build -o "$work/cfs" ./cmd/cfs)
    "$work/cfs" --help >/dev/null || fail "the cfs that was built does not run"
  }
  unset GOCACHE GOTMPDIR GOFLAGS CGO_ENABLED
}

sqlite_step() {
  need sqlite3 || return 0
  local db=$work/db n=$((${short:+1} + 0 ? 10 : 100)) i pids=()
  sqlite3 "$db" 'pragma journal_mode=wal; create table t(who int, n int, pad blob);' >/dev/null
  for i in 1 2 3 4; do
    for ((k = 0; k < n; k++)); do
      echo "insert into t values($i, $k, randomblob(1000));"
    done | sqlite3 -cmd '.timeout 60000' "$db" &
    pids+=($!)
  done
  for i in "${pids[@]}"; do wait "$i" || fail "a writer failed"; done
  [[ $(sqlite3 "$db" 'pragma integrity_check; select count(*), count(distinct who), max(n) from t;' | tr '\n' ' ') == "ok $((4 * n))|4|$((n - 1)) " ]] ||
    fail "what the writers committed is not what is there"
  sqlite3 "$db" 'pragma wal_checkpoint(truncate); vacuum; pragma journal_mode=delete; pragma integrity_check;' | tail -n 1 | grep -qx ok || fail "after a vacuum"
}

# A tree to copy: Go's own source has many small files and some large ones.
tree() {
  if command -v go >/dev/null; then
    local src
    src=$(HOME=/root go env GOROOT)/src
    [[ -n $short ]] && echo "$src/net" || echo "$src"
  else
    echo "$root"
  fi
}

tar_step() {
  need tar diff || return 0
  local from
  from=$(tree)
  tar -C "$from" -cf "$work/all.tar" .
  mkdir "$work/x"
  tar -C "$work/x" -xpf "$work/all.tar"
  diff -r "$from" "$work/x" >/dev/null || fail "what was unpacked differs"
  tar -C "$work/x" -df "$work/all.tar" || fail "tar finds differences of times, modes or owners"
}

rsync_step() {
  need rsync || return 0
  local from
  from=$(tree)
  rsync -aHAX "$from/" "$work/to/"
  [[ -z $(rsync -aHAXi --checksum "$from/" "$work/to/") ]] || fail "a second rsync finds something to do"
  rsync -aH --delete --inplace "$root/fuse/" "$work/to/"
  diff -r "$root/fuse" "$work/to" >/dev/null || fail "after rsync --delete --inplace"
}

dpkg_step() {
  need dpkg dpkg-deb || return 0
  local r=$work/root i
  mkdir -p "$work/p/DEBIAN" "$work/p/usr/share" "$r/var/lib/dpkg/"{info,updates,triggers} "$r/usr"
  cp -r "$root/docs" "$work/p/usr/share/cfs-docs"
  touch "$r/var/lib/dpkg/status"
  for i in 1 2; do # the second replaces the first
    printf 'Package: cfs-docs\nVersion: %s\nArchitecture: all\nMaintainer: t <t@example.com>\nDescription: t\n' "$i" >"$work/p/DEBIAN/control"
    dpkg-deb -b "$work/p" "$work/$i.deb" >/dev/null
    dpkg --root="$r" --force-script-chrootless -i "$work/$i.deb" >/dev/null 2>"$work/log" || fail "dpkg: $(cat "$work/log")"
  done
  diff -r "$root/docs" "$r/usr/share/cfs-docs" >/dev/null || fail "what was unpacked differs"
  [[ -n $short ]] && return
  (cd "$work" && apt-get download -qq coreutils) || fail "apt-get download"
  dpkg --root="$r" --force-depends --unpack "$work"/coreutils_*.deb >/dev/null
  "$r/bin/ls" / >/dev/null || "$r/usr/bin/ls" / >/dev/null || fail "the program that was unpacked does not run"
}

dbench_step() {
  need dbench || return 0
  mkdir "$work/d"
  dbench -t "$((${short:+1} + 0 ? 3 : 20))" -D "$work/d" 4 >"$work/out" || { tail -n 5 "$work/out" >&2; fail "dbench"; }
  grep Throughput "$work/out"
}

postgres_step() {
  need postgres initdb pg_ctl psql pgbench runuser || return 0
  source "$root/hack/postgres.sh"
  postgres_run
}

trap inmount_down EXIT
[[ -n $mnt ]] || inmount_up
for step in "${steps[@]}"; do
  declare -F "${step}_step" >/dev/null || { echo "no such step: $step" >&2; exit 2; }
  work=$mnt/$step
  mkdir "$work"
  begun=$SECONDS
  "${step}_step"
  echo "done $step: $((SECONDS - begun)) s"
  rm -rf "$work"
done
