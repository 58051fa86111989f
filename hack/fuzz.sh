#!/usr/bin/env bash
# Fuzzes every target of the tree for SECONDS in all, shared equally. Each
# package is compiled once, with coverage, and its targets run from that binary,
# one on each processor: what a target needs to begin and to end is then done beside another's fuzzing.
# A failing input is left in the package's testdata/fuzz for the fix to commit.
#   usage: hack/fuzz.sh SECONDS
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
total=${1:?usage: hack/fuzz.sh SECONDS}
total=${total%s}

corpus=$(go env GOCACHE)/fuzz/$(go list -m)
lanes=$(nproc)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# "directory target" for each, in a stable order.
mapfile -t targets < <(find . -name '*_test.go' -not -path '*/testdata/*' -printf '%P\n' | sort |
  xargs -r grep -HoE '^func Fuzz[A-Za-z0-9_]+' | sed -E 's|^(.*)/[^/]+:func (.*)$|\1 \2|')
((${#targets[@]})) || { echo "fuzz: no targets"; exit 0; }
each=$((total / ${#targets[@]}))
((each > 0)) || each=1
each=$((each * lanes)) # on one processor, which takes as many times as long
echo "fuzz: ${#targets[@]} targets, $each s each, $lanes at a time"

binary_of() { echo "$scratch/${1//\//_}.test"; }

# compile makes a package's binary. Nobody debugs it: without the debugger's tables it links in half the time.
compile() { go test -vet=off -c -fuzz=. -ldflags='-s -w' -o "$(binary_of "$1")" "./$1"; }

# fuzz runs a target and says how it went, in one piece.
fuzz() {
  local dir=$1 name=$2 code=0
  local log=$scratch/${dir//\//_}.$name.log
  (cd "$dir" && "$(binary_of "$dir")" -test.run='^$' -test.fuzz="^$name\$" -test.fuzztime="${each}s" -test.parallel=1 \
    -test.timeout=$((each + 120))s -test.fuzzcachedir="$corpus/$dir") >"$log" 2>&1 || code=$?
  if ((code)) && grep -qx '    context deadline exceeded' "$log" && ! grep -qE 'Failing input written|panic|hung or terminated' "$log"; then
    # golang/go#75804, mended in Go 1.27: the end of the time allowed is now
    # and then reported as a failure of the target. No input failed.
    code=0
  fi
  if ((code)); then
    echo "fuzz: $dir $name"$'\n'"$(cat "$log")"
  else
    echo "fuzz: $dir $name"$'\n'"$(tail -n 2 "$log")"
  fi
  return $code
}

export scratch corpus each
export -f binary_of compile fuzz
# xargs goes on after a failure, and fails in the end.
printf '%s\n' "${targets[@]}" | cut -d' ' -f1 | uniq | xargs -P "$lanes" -I{} bash -euo pipefail -c 'compile {}'
printf '%s\n' "${targets[@]}" | xargs -P "$lanes" -L1 bash -euo pipefail -c 'fuzz "$@"' fuzz
