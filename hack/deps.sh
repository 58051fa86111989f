#!/usr/bin/env bash
# Installs the Debian packages that the build, the tests and the demo use.
# Looks for the things themselves first and calls apt only for what is missing.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

# command or file : Debian package
needs=(
  fio:fio                          # the disk's own rate, which ratios are taken to
  protoc:protobuf-compiler         # make generate, and the test that its result is committed
  fusermount3:fuse3                # mounting
  nft:nftables                     # cutting the network in whole-cluster tests
  ip:iproute2                      # network namespaces for nodes
  gcc:gcc                          # the race detector
  /usr/include/stdlib.h:libc6-dev  # the race detector
)

command -v go >/dev/null || { echo "deps: no go on the PATH: install Go $(awk '$1 == "go" {print $2}' go.mod) or later (https://go.dev/dl)" >&2; exit 1; }

missing=()
for need in "${needs[@]}"; do
  what=${need%%:*} package=${need#*:}
  if [[ $what == /* ]]; then
    [[ -e $what ]] || missing+=("$package")
  else
    command -v "$what" >/dev/null || missing+=("$package")
  fi
done
((${#missing[@]})) || exit 0

command -v apt-get >/dev/null || { echo "deps: no apt-get here: install these yourself: ${missing[*]}" >&2; exit 1; }
((EUID == 0)) || { echo "deps: run as root, or install these yourself: ${missing[*]}" >&2; exit 1; }

echo "deps: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
