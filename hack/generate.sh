#!/usr/bin/env bash
# Writes the Go code of every .proto file of the tree under the directory OUT
# (the repository itself for `make generate`, a scratch one for the test that
# compares). The plugin is the version in go.mod.
#   usage: hack/generate.sh OUT
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:?usage: hack/generate.sh OUT}

plugin=$(go tool -n protoc-gen-go)
mapfile -t protos < <(find . -name '*.proto' -not -path './.git/*' -printf '%P\n' | sort)
((${#protos[@]})) || exit 0
protoc --plugin=protoc-gen-go="$plugin" --go_out="$out" --go_opt=paths=source_relative "${protos[@]}"
