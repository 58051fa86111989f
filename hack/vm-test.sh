#!/usr/bin/env bash
# Runs what needs an NVMe device in the guest of hack/vm.sh. Builds the test
# binaries here and runs them there, on an emulated machine with three NVMe
# controllers, with logical blocks of 512, 4096 and 512 bytes.
#   usage: hack/vm-test.sh [short]
# "short" is the conformance suite of devices on both paths to a namespace; it is
# skipped, with the reason, where the machine cannot be started.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=$PWD/bin/vm

# The half that runs in the guest.
if [[ ${1:-} == guest ]]; then
  failed=()
  # run NAME COMMAND [ARG..]: goes on after a failure, and remembers it.
  run() {
    local name=$1 start=$SECONDS
    shift
    echo "== $name"
    if "$@"; then
      echo "== $name: ok, $((SECONDS - start)) s"
    else
      echo "== $name: FAILED"
      failed+=("$name")
    fi
  }
  # tests DIR BINARY [ARG..]: a line for each test, and what those have to say that fail.
  tests() {
    local dir=$1 binary=$2
    shift 2
    (cd "$dir" && timeout -k 10 630 "$bin/$binary" -test.v -test.timeout 10m "$@") >/tmp/vm-test.log 2>&1 && local code=0 || local code=$?
    if ! ((code)) && ! grep -q '^--- PASS' /tmp/vm-test.log; then
      echo "no test has run"
      code=1
    fi
    if ((code)); then
      grep -vE '^=== (RUN|PAUSE|CONT|NAME)|^ +--- (PASS|SKIP)' /tmp/vm-test.log || true
    else
      grep -E '^--- ' /tmp/vm-test.log || true
    fi
    return $code
  }
  uname -sr
  if [[ $2 == short ]]; then
    run "devices" tests nvme nvme.test -test.run '^TestDevicePaths$' -device.path=/dev/nvme0n1,/dev/ng0n1
  else
    run "devices" tests nvme nvme.test -test.run '^TestDevicePaths$' -device.path=/dev/nvme0n1,/dev/ng0n1,/dev/nvme1n1,/dev/ng1n1
    run "a log on each device" tests nvme nvme.test -test.run '^TestDeviceLog$' -device.path=/dev/nvme0n1,/dev/ng0n1,/dev/ng1n1
    # Emulated, a seed takes seconds; on the host they take their full number.
    run "a log through crashes" tests nvme nvme.test -test.run '^TestCrashes$' -crash.seeds=20
    run "controllers that are reset" tests nvme nvme.test -test.run '^TestDeviceReset$' -device.reset=/dev/ng0n1,/dev/nvme1n1
    run "a device that is lost" tests nvme nvme.test -test.run '^TestDeviceVanishes$' -device.vanish=/dev/ng2n1,/dev/nvme1n1
    run "engines on a block device" tests iopath iopath.test -test.run '^TestDevice$' -engine.path=/dev/nvme0n1 -engine.poll
    run "engines on a character device" tests iopath iopath.test -test.run '^TestDeviceCommands$' -engine.path=/dev/ng0n1
    # Everything of the engines, with their files on the device.
    mkdir -p /run/vm/nvme
    run "make a file system" mkfs.ext4 -q -F /dev/nvme0n1
    run "mount it" mount -t ext4 /dev/nvme0n1 /run/vm/nvme
    run "a device that is mounted" tests nvme nvme.test -test.run '^TestDeviceBusy$' -device.busy=/dev/nvme0n1,/dev/ng0n1
    TMPDIR=/run/vm/nvme run "engines on files" tests iopath iopath.test
    umount /run/vm/nvme || true # the failure to mount it has been told
  fi
  ((${#failed[@]})) || exit 0
  printf '== failed in the guest: %s\n' "${failed[@]}"
  exit 1
fi

how=${1:-full}
if ! why=$(hack/vm.sh --check 2>&1); then
  [[ $how == short ]] || { echo "$why" >&2; exit 1; }
  echo "skipped: $why"
  exit 0
fi
mkdir -p "$bin"
for package in nvme iopath; do
  CGO_ENABLED=0 go test -vet=off -c -o "$bin/$package.test" "./$package"
done
seconds=1800
[[ $how == short ]] && seconds=300
exec hack/vm.sh --nvme 3 --nvme-size 1G --nvme-block 512,4096,512 --modules ext4 --timeout "$seconds" -- hack/vm-test.sh guest "$how"
