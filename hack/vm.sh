#!/usr/bin/env bash
# Runs a command in a virtual machine: Debian's kernel with NVMe devices, under
# software emulation, on this machine's root.
#   usage: hack/vm.sh [OPTIONS] -- COMMAND [ARG..]
#     --nvme N              NVMe controllers with a namespace each, /dev/nvme0n1 and /dev/ng0n1 and so on (1)
#     --nvme-size SIZE      of each namespace, as truncate(1) takes it (1G)
#     --nvme-block B[,B..]  its logical block size, in turn: 512 or 4096 (512)
#     --modules M[,M..]     kernel modules to load before the command; modprobe works in the guest too
#     --memory MIB          of the guest (3072); what it writes to its root is in there
#     --timeout SECONDS     for the whole run (300)
#     --check               only say whether the machine can be started here, and why not
# The command runs as root in the working directory and with the environment of
# the caller. It sees the files of the host, and what it writes goes to a tmpfs over them.
# Its output comes live, both streams as one; its exit status is that of vm.sh,
# but 124 after the timeout and 125 when the machine itself fails.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${CFS_VM_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/claudefs/vm}
fail() { echo "vm: $*" >&2; exit 125; }

controllers=1 size=1G blocks=512 modules= memory=3072 seconds=300 check=
while (($#)); do
  case $1 in
  --check) check=yes; shift; continue ;;
  --) shift; break ;;
  --nvme | --nvme-size | --nvme-block | --modules | --memory | --timeout) (($# > 1)) || fail "$1 needs a value" ;;
  *) sed -n '4,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; fail "no option $1" ;;
  esac
  case $1 in
  --nvme) controllers=$2 ;;
  --nvme-size) size=$2 ;;
  --nvme-block) blocks=$2 ;;
  --modules) modules=$2 ;;
  --memory) memory=$2 ;;
  --timeout) seconds=$2 ;;
  esac
  shift 2
done

# What is needed, and the newest kernel that make deps-vm unpacked.
for tool in qemu-system-x86_64 busybox cpio modprobe; do
  command -v "$tool" >/dev/null || fail "no $tool here: make deps-vm installs it"
done
kernel=
while read -r dir; do
  [[ -e $dir/ready ]] && kernel=$dir
done < <(find "$cache" -mindepth 1 -maxdepth 1 -name 'linux-image-*' 2>/dev/null | sort -V)
[[ -n $kernel ]] || fail "no kernel in $cache: make deps-vm unpacks one there"
((EUID == 0)) || fail "run as root: the guest reads the host's root with the caller's rights"
[[ -z $check ]] || exit 0
(($#)) || fail "no command: hack/vm.sh [OPTIONS] -- COMMAND [ARG..]"

version=${kernel##*/linux-image-}
image=$kernel/vmlinux
[[ -e $image ]] || image=$kernel/boot/vmlinuz-$version
tree=$kernel
[[ -d $tree/lib/modules ]] || tree=$kernel/usr
run=$(mktemp -d "${TMPDIR:-/tmp}/cfs-vm.XXXXXX")
children=()
cleanup() {
  ((${#children[@]} == 0)) || kill "${children[@]}" 2>/dev/null || true
  wait
  rm -rf "$run"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The initramfs: busybox, the modules in the order of their dependencies, the job.
root=$run/root
mkdir -p "$root/bin" "$root/mods"
cp "$(command -v busybox)" "$root/bin/busybox"
cp "$here/vm-init.sh" "$root/init"
echo "$tree/lib/modules/$version" >"$root/modules.dir"
: >"$root/mods.list"
for module in virtio_pci virtio_console 9p 9pnet_virtio overlay nvme ${modules//,/ }; do
  dependencies=$(modprobe -d "$tree" -S "$version" --show-depends "$module") || fail "the kernel $version has no module $module"
  while read -r how file _; do
    [[ $how == insmod ]] || continue
    name=$(basename "$file")
    case $name in
    *.xz) name=${name%.xz}; [[ -e $root/mods/$name ]] || xz -dc "$file" >"$root/mods/$name" ;;
    *.zst) name=${name%.zst}; [[ -e $root/mods/$name ]] || zstd -qdc "$file" >"$root/mods/$name" ;;
    *) [[ -e $root/mods/$name ]] || cp "$file" "$root/mods/$name" ;;
    esac
    case $name in
    nvme.ko) name+=" poll_queues=1" ;; # what IORING_SETUP_IOPOLL needs
    nvme-core.ko) name+=" io_timeout=10" ;; # an emulated reset loses an interrupt now and then
    esac
    grep -qxF "$name" "$root/mods.list" || echo "$name" >>"$root/mods.list"
  done <<<"$dependencies"
done
{
  export -p
  printf 'cd %q\n' "$PWD"
  printf '%q ' "$@"
  echo
} >"$root/job"
(cd "$root" && find . -print0 | cpio --null -o -H newc --quiet) >"$run/initrd"
rm -rf "$root"

# A controller with a namespace of its own for each image. Sparse files: what is not written takes no room.
nvme=()
IFS=, read -ra block <<<"$blocks"
for ((i = 0; i < controllers; i++)); do
  truncate -s "$size" "$run/nvme$i.img"
  nvme+=(
    -drive "file=$run/nvme$i.img,if=none,id=drive$i,format=raw,cache=writeback,discard=unmap"
    -device "nvme,id=nvme$i,serial=cfs$i"
    -device "nvme-ns,bus=nvme$i,drive=drive$i,nsid=1,logical_block_size=${block[i % ${#block[@]}]},physical_block_size=4096,eui64=$((0x5254000000000001 + i))"
  )
done

mkfifo "$run/out"
cat "$run/out" &
printer=$!
children+=("$printer")
timeout --foreground -k 10 "$seconds" qemu-system-x86_64 \
  -M q35 -accel tcg,thread=multi -cpu max -smp 2 -m "$memory" -nodefaults -no-user-config -display none -no-reboot \
  -kernel "$image" -initrd "$run/initrd" -append "console=ttyS0 quiet panic=-1 oops=panic mitigations=off cryptomgr.notests random.trust_cpu=on" \
  -serial "file:$run/console" \
  -device virtio-serial-pci \
  -chardev "file,id=out,path=$run/out" -device virtserialport,chardev=out,name=out \
  -chardev "file,id=status,path=$run/status" -device virtserialport,chardev=status,name=status \
  -fsdev local,id=root,path=/,security_model=none,multidevs=remap,readonly=on -device virtio-9p-pci,fsdev=root,mount_tag=hostroot \
  "${nvme[@]}" </dev/null >"$run/stderr" 2>&1 &
emulator=$!
children+=("$emulator")
code=0
wait "$emulator" || code=$?
: <>"$run/out" # lets the printer end when the emulator never got so far as to open it
wait "$printer" || true
children=()
# What the guest's kernel had to say is of use only when something is wrong.
story() {
  echo "vm: the end of the guest's console:" >&2
  tail -n 40 "$run/console" >&2 || true
  grep -v '^$' "$run/stderr" >&2 || true
}
if [[ -s $run/status ]]; then
  read -r status <"$run/status"
  exit "$status"
fi
story
((code == 124 || code == 137)) && { echo "vm: the command had not ended after $seconds s (--timeout), so the machine was stopped" >&2; exit 124; }
fail "the machine stopped before the command ended (emulator status $code)"
