# Sourced by scripts that work inside a mount: starts a cluster of this machine in a directory of its own,
# mounts it, and takes all of it away when the script ends, however it ends.
#
#   inmount_up        start and mount; sets $base (a directory on the disk) and $mnt (the mount)
#   inmount_leader    prints the number of the node that leads
#   inmount_hook      is called before all that, where the script defines it
#
# CFS_DEMO_ARGS are further arguments of `cfs demo up`, CFS_DEMO_PARENT is where the directory is made.
[[ -n ${BASH_VERSION:-} ]] || exit 1
export PATH="$PATH:/usr/sbin:/sbin"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cfs=$root/bin/cfs

inmount_down() {
  local status=$?
  trap - EXIT
  cd /
  # What still works in the mount would keep it busy.
  jobs -p | xargs -r kill 2>/dev/null || true
  wait
  ! declare -F inmount_hook >/dev/null || inmount_hook
  [[ -z ${base:-} ]] || {
    "$cfs" demo down --dir "$base/c" >/dev/null 2>"$base/down.log" || { cat "$base/down.log" >&2; status=1; }
    rm -rf --one-file-system "$base" || status=1
  }
  exit "$status"
}

inmount_up() {
  ((EUID == 0)) || { echo "$0: mounting needs root" >&2; exit 1; }
  [[ -x $cfs ]] || { echo "$0: no $cfs: run make build" >&2; exit 1; }
  trap inmount_down EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  base=$(mktemp -d "${CFS_DEMO_PARENT:-/var/tmp}/cfs-inmount-XXXXXX")
  chmod 755 "$base" # other users come here too
  # shellcheck disable=SC2086 # several arguments
  "$cfs" demo up --dir "$base/c" --device-size 4GiB ${CFS_DEMO_ARGS:-} >"$base/up.log" || { cat "$base/up.log" >&2; exit 1; }
  chmod 755 "$base/c"
  mnt=$base/c/mnt
}

inmount_leader() {
  local node
  for node in "$base"/c/node-*; do
    "$cfs" admin status --timeout 5s --server "unix:$node/data/node.sock" 2>/dev/null | sed -nE 's/^leader +node ([0-9]+).*/\1/p' | grep . && return
  done
  return 1
}
