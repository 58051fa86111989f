#!/usr/bin/env bash
# Runs xfstests over two clusters of this machine, one for TEST_DEV and one for SCRATCH_DEV, with FSTYP=fuse.
# Its arguments are the suite's directory, where `make` was run (https://github.com/kdave/xfstests), and what its
# `check` takes: tests as generic/001, or groups as -g quick.
set -euo pipefail
suite=${1:?usage: hack/xfstests.sh DIRECTORY-OF-XFSTESTS [TEST...]}
suite=$(cd "$suite" && pwd)
shift
(($#)) || set -- -g quick
source "$(dirname "$0")/inmount.sh"
[[ -x $suite/ltp/fsstress && -x $suite/src/lstat64 ]] || { echo "xfstests: $suite is not built: run make there" >&2; exit 1; }
[[ $suite != *[[:space:]]* ]] || { echo "xfstests: no white space in $suite" >&2; exit 1; }

# mount -t fuse.cfs runs this. One that is installed is used as it is.
helper=/sbin/mount.fuse.cfs
made=
inmount_hook() {
  local m
  for m in "$base/test" "$base/scratch"; do
    ! mountpoint -q "$m" 2>/dev/null || umount "$m" || umount -l "$m" || true
  done
  [[ ! -d $base/c2 ]] || "$cfs" demo down --dir "$base/c2" >/dev/null || true
  [[ -z $made ]] || rm -f "$helper"
}

# address prints the source of the mount that demo up has made in a directory, and takes that mount off.
address() {
  findmnt -no SOURCE "$1/mnt"
  "$cfs" umount "$1/mnt" >&2
}

CFS_DEMO_ARGS="--tls off ${CFS_DEMO_ARGS:-}" inmount_up
# shellcheck disable=SC2086 # several arguments
"$cfs" demo up --dir "$base/c2" --device-size 4GiB --tls off ${CFS_DEMO_ARGS:-} >"$base/up2.log"
if [[ ! -e $helper ]]; then
  made=1
  cat >"$helper" <<END
#!/bin/sh
exec "$cfs" mount "\$2" --tls off --server "\${1%:/}"
END
  chmod +x "$helper"
fi
mkdir "$base/test" "$base/scratch" "$base/results"
cat >"$base/config" <<END
export FSTYP=fuse FUSE_SUBTYP=.cfs
export TEST_DEV=$(address "$base/c") TEST_DIR=$base/test
export SCRATCH_DEV=$(address "$base/c2") SCRATCH_MNT=$base/scratch
export RESULT_BASE=$base/results MOUNT_OPTIONS= TEST_FS_MOUNT_OPTS=
END
cd "$suite"
status=0
HOST_OPTIONS=$base/config ./check "$@" || status=1
# The end of what differs, for each that failed: the directory goes.
find "$base/results" -name '*.out.bad' | sort | while read -r bad; do
  name=${bad#"$base"/results/} name=${name%.out.bad}
  echo "== $name"
  diff "$suite/tests/${name#*/results/}.out" "$bad" 2>/dev/null | head -n 12 || tail -n 12 "$bad"
done
exit "$status"
