#!/usr/bin/env bash
# Fuzzes every target of the tree for SECONDS in all, shared equally. Each
# package is compiled once, with coverage, and its targets run from that binary.
# A failing input is left in the package's testdata/fuzz for the fix to commit.
#   usage: hack/fuzz.sh SECONDS
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
total=${1:?usage: hack/fuzz.sh SECONDS}
total=${total%s}

root=$PWD
module=$(go list -m)
corpus=$(go env GOCACHE)/fuzz
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# "directory target" for each, in a stable order.
mapfile -t targets < <(find . -name '*_test.go' -not -path '*/testdata/*' -printf '%P\n' | sort |
  xargs -r grep -HoE '^func Fuzz[A-Za-z0-9_]+' | sed -E 's|^(.*)/[^/]+:func (.*)$|\1 \2|')
((${#targets[@]})) || { echo "fuzz: no targets"; exit 0; }
each=$((total / ${#targets[@]}))
((each > 0)) || each=1
echo "fuzz: ${#targets[@]} targets, $each s each"

status=0
for target in "${targets[@]}"; do
  read -r dir name <<<"$target"
  binary=$scratch/${dir//\//_}.test
  [[ -e $binary ]] || go test -vet=off -c -fuzz=. -o "$binary" "./$dir"
  log=$scratch/log
  echo "fuzz: $dir $name"
  code=0
  (cd "$dir" && "$binary" -test.run='^$' -test.fuzz="^$name\$" -test.fuzztime="${each}s" -test.timeout=$((each + 120))s \
    -test.fuzzcachedir="$corpus/$module/$dir") >"$log" 2>&1 || code=$?
  if ((code)) && grep -qx '    context deadline exceeded' "$log" && ! grep -qE 'Failing input written|panic|hung or terminated' "$log"; then
    # golang/go#75804, mended in Go 1.27: the end of the time allowed is now
    # and then reported as a failure of the target. No input failed.
    code=0
  fi
  if ((code)); then
    cat "$log"
    status=1
  else
    tail -n 2 "$log"
  fi
done
cd "$root"
exit $status
