#!/usr/bin/env bash
# Installs the programs that hack/realprograms.sh lets work in a mount, those that are missing.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
needs=(git:git sqlite3:sqlite3 rsync:rsync dbench:dbench psql:postgresql pgbench:postgresql tar:tar dpkg-deb:dpkg pgrep:procps)
missing=()
for need in "${needs[@]}"; do
  command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
done
((${#missing[@]})) || exit 0
((EUID == 0)) && command -v apt-get >/dev/null || { echo "programs: install these yourself: ${missing[*]}" >&2; exit 1; }
echo "programs: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
