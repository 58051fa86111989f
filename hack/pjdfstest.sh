#!/usr/bin/env bash
# Runs all of pjdfstest inside a mount and says what failed. Its argument is the suite's source
# (https://github.com/pjd/pjdfstest), which is built where it lies if it is not yet.
set -euo pipefail
suite=${1:?usage: hack/pjdfstest.sh DIRECTORY-OF-PJDFSTEST}
suite=$(cd "$suite" && pwd)
source "$(dirname "$0")/inmount.sh"
command -v prove >/dev/null || { echo "pjdfstest: no prove: install perl" >&2; exit 1; }

if [[ ! -x $suite/pjdfstest ]]; then
  command -v autoreconf >/dev/null || { echo "pjdfstest: no autoreconf: install autoconf, automake and gcc, or build $suite/pjdfstest yourself" >&2; exit 1; }
  (cd "$suite" && autoreconf -ifs && ./configure && make pjdfstest) >"$suite/build.log" 2>&1 || { tail -n 20 "$suite/build.log" >&2; exit 1; }
fi

inmount_up
mkdir "$mnt/pjdfstest"
cd "$mnt/pjdfstest"
status=0
prove -r -j "$(nproc)" "$suite/tests" >"$base/out" 2>&1 || status=1
# What prove says of files that pass is of no interest, unless it is all that there is.
grep -vE '\.\.+ ok$' "$base/out" || true
exit "$status"
